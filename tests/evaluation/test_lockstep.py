"""Samples and batches of an evaluation on all ranks; an error of one is that of all, and says whether to try again."""

from __future__ import annotations

import pytest

from megaunigame.data.shards.index import ShardIndex
from megaunigame.errors import DataError, LostShard, TransientError, UserError
from megaunigame.evaluation.lockstep import (
    Item,
    gathered,
    gathered_to_main,
    lockstep_batches,
    read_sample,
    read_share,
    together,
)
from tests.data.shard_files import write_shards
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


SIZES = [3, 1, 4]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return ShardIndex.open(write_shards(tmp_path_factory.mktemp("shards"), SIZES))


def number(sample) -> int:
    return sample.meta["number"]


def test_positions_run_through_the_shards(index):
    assert [number(read_sample(index, position)) for position in range(8)] == [*range(8)]


@pytest.mark.parametrize(("ranks", "limit", "shift"), [(1, 0, 0), (3, 0, 0), (3, 7, 0), (2, 5, 2)])
def test_every_sample_is_read_by_one_rank(index, ranks, limit, shift):
    count = limit or 8
    shares = on_ranks(ranks, lambda world: read_share(index, limit, world, shift=shift))
    assert all(position % ranks == rank for rank, share in enumerate(shares) for position, _ in share)
    read = sorted((position, number(sample)) for share in shares for position, sample in share)
    assert read == [(position, (position + shift) % count) for position in range(count)]


def test_ranks_with_fewer_rows_make_as_many_batches():
    rows = [["a", "b", "c", "d", "e"], ["f"], []]
    found = on_ranks(3, lambda world: lockstep_batches(rows[world.rank], 2, world))
    assert found[0] == [["a", "b"], ["c", "d"], ["e", None]]
    assert found[1] == [["f", None], [None, None], [None, None]] and found[2] == [[None, None]] * 3


def test_what_is_gathered_is_in_the_order_of_the_samples():
    def work(world):
        items = [Item(position, f"k{position}", None) for position in range(world.rank, 7, world.size)]
        return [item.position for item in gathered(world, items)], [item.position for item in gathered_to_main(world, items)]

    assert on_ranks(3, work) == [([*range(7)], [*range(7)]), ([*range(7)], []), ([*range(7)], [])]
