"""An error of one rank is raised on all, with the rank and its host."""

from __future__ import annotations

import errno
import socket

import pytest

from megaunigame.errors import ConfigError, DataError, LoaderError, LostRankError, LostShard, TransientError, UserError
from megaunigame.parallel.together import finishing, raise_together
from tests.worlds import OneRank, on_ranks

HOST = socket.gethostname()


def raised(errors: list[Exception | None]) -> list[Exception | None]:
    """What `raise_together` raises on every rank."""

    def work(world):
        try:
            raise_together(world, errors[world.rank])
        except Exception as error:
            return [error]
        return [None]

    return [found for (found,) in on_ranks(len(errors), work)]


def test_no_error_is_no_error():
    assert raised([None, None]) == [None, None]


@pytest.mark.fault("an error of one rank alone", does="raises it on every rank", lost="steps since the last save")
def test_all_ranks_raise_the_error_of_one():
    found = raised([None, DataError("a.tar is cut."), None])
    assert [type(error) for error in found] == 3 * [DataError]
    assert {str(error) for error in found} == {f"Rank 1 ({HOST}): a.tar is cut."}


def test_equal_errors_are_said_once():
    found = raised([DataError("gone"), LoaderError("killed"), DataError("gone")])
    assert str(found[0]) == f"Rank 0 ({HOST}), 2 ({HOST}): gone Rank 1 ({HOST}): killed"
    many = raised([DataError("gone")] * 6)
    assert "and 2 more ranks: gone" in str(many[5])


def test_an_error_of_the_program_keeps_its_traceback_where_it_was():
    found = raised([KeyError("x"), None])
    assert isinstance(found[0], KeyError)
    assert type(found[1]) is TransientError and "KeyError: 'x' (its traceback is in the output of that rank)" in str(found[1])


@pytest.mark.parametrize(
    "errors, kind",
    [
        ([OSError(errno.ESTALE, "Stale file handle"), None], TransientError),
        ([LostShard("gone"), OSError(errno.EIO, "I/O")], LostShard),
        ([LoaderError("killed"), DataError("a.tar is cut.")], DataError),
        ([KeyError("x"), None, ConfigError("wrong")], ConfigError),
        ([OSError(errno.ENOSPC, "No space left on device"), None], UserError),
    ],
)
def test_what_may_pass_is_tried_again_unless_something_must_be_fixed(errors, kind):
    """Of the ranks that raise the agreed error: a scheduler takes their exit code for that of the run."""
    agreed = [e for e, own in zip(raised(errors), errors, strict=True) if e is not own]
    assert agreed and {type(error) for error in agreed} == {kind}
    assert issubclass(kind, TransientError) == (kind in (TransientError, LostShard))


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("of", [0, 1])
def test_all_ranks_finish_before_an_error_of_one_goes_on(code, of):
    def work(world):
        finished: list[object] = []

        def finish() -> None:
            finished.append(world.all_gather_object(0))

        with pytest.raises((UserError, TransientError, OSError)), finishing(finish):
            raise_together(world, OSError(code, "disk") if world.rank == of else None)
        return finished

    assert on_ranks(2, work) == [[[0, 0]], [[0, 0]]]


def test_a_lost_rank_is_not_waited_for():
    with pytest.raises(LostRankError), finishing(lambda: pytest.fail("a collective without that rank")):
        raise LostRankError("rank 1 is gone")


def test_one_rank_raises_its_error_as_it_is():
    with pytest.raises(DataError, match="^gone$"):
        raise_together(OneRank(), DataError("gone"))
    raise_together(OneRank(), None)
