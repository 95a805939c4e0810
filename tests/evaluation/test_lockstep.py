"""An error of one rank in an evaluation is raised on all, of a kind that says whether to try again."""

from __future__ import annotations

import pytest

from megaunigame.errors import DataError, LostShard, TransientError, UserError
from megaunigame.evaluation.lockstep import together
from tests.worlds import on_ranks


@pytest.mark.parametrize(
    "errors, kind, text",
    [
        ([None, LostShard("a.tar is gone")], LostShard, "a.tar is gone"),
        ([LostShard("a.tar is gone"), DataError("b.tar is cut")], DataError, "b.tar is cut"),
        ([UserError("wrong"), None], UserError, "wrong"),
    ],
)
def test_an_error_of_one_rank_keeps_its_kind_on_all(errors, kind, text):
    def work(world):
        def fail():
            if errors[world.rank] is not None:
                raise errors[world.rank]

        with pytest.raises((UserError, TransientError), match=text) as raised:
            together(world, fail)
        return raised.type

    assert on_ranks(2, work) == [kind, kind]
