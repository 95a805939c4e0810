"""The plan of a merge: what is kept, and that no record moves without need."""

from __future__ import annotations

import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from megaunigame.replay.merge import CandidateGrid, deal, plan_merge, share_of

NAN = float("nan")


def empty_table(world_size: int, capacity: int, slots: int) -> np.ndarray:
    return np.full((world_size, share_of(capacity, world_size) + slots), NAN, np.float32)


def test_two_ranks_by_hand():
    table = empty_table(2, capacity=3, slots=2)
    table[0] = [5, NAN, 1, 4]  # holds place 0
    table[1] = [2, NAN, 3, NAN]  # holds place 1
    plan = plan_merge(table, ledger=np.array([0, 1]), rows=1, capacity=3, percentile=50)
    assert plan.threshold == 3 and (plan.candidates, plan.accepted, plan.entered, plan.left) == (3, 2, 2, 1)
    assert plan.losses.tolist() == [5, 4, 3]
    assert plan.holders.tolist() == [0, 0, 1] and plan.columns.tolist() == [0, 3, 2]
    # 5 and 4 are both on rank 0 and of one block: the harder stays. 3 is alone in its block, and stays too.
    assert plan.owners.tolist() == [0, 1, 1]


def test_old_records_win_ties_and_do_not_meet_the_threshold():
    table = empty_table(1, capacity=3, slots=3)
    table[0] = [1, 0.5, NAN, 1, 0.75, 0]
    plan = plan_merge(table, ledger=np.array([0, 0]), rows=3, capacity=3, percentile=90)
    assert plan.columns.tolist() == [0, 3, 1] and plan.threshold == 0.95


def test_the_threshold_is_not_rounded():
    """The only loss equals its own percentile, although float64 and float32 write it differently."""
    table = empty_table(1, capacity=1, slots=1)
    table[0, 1] = 0.1
    assert plan_merge(table, np.zeros(0, np.int64), rows=1, capacity=1, percentile=60).accepted == 1


def test_nothing_at_all():
    plan = plan_merge(empty_table(3, 4, 6), np.zeros(0, np.int64), rows=2, capacity=4, percentile=60)
    assert np.isnan(plan.threshold) and len(plan.owners) == plan.candidates == plan.left == 0


@given(st.integers(1, 7), st.integers(1, 5), st.integers(1, 4))
def test_positions_count_micro_step_then_rank_then_row(world_size, rows, calls):
    grid = CandidateGrid(world_size, rows)
    ranks, slots = grid.place(np.arange(calls * world_size * rows))
    order = [(r, c * rows + i) for c in range(calls) for r in range(world_size) for i in range(rows)]
    assert list(zip(ranks.tolist(), slots.tolist(), strict=True)) == order
    assert [grid.position(rank, np.array(slot)) for rank, slot in order] == list(range(len(order)))
    assert grid.calls(len(order)) == calls and grid.calls(len(order) + 1) == calls + 1


@given(st.integers(1, 7).flatmap(lambda w: st.tuples(st.just(w), st.lists(st.integers(0, w - 1), max_size=40))))
def test_every_block_has_every_rank_once_with_the_fewest_moves(case):
    world_size, ranks = case
    holders = np.array(ranks, np.int64)
    owners = deal(holders, world_size)
    for start in range(0, len(holders), world_size):
        before, after = holders[start : start + world_size].tolist(), owners[start : start + world_size].tolist()
        assert len(set(after)) == len(before)
        assert sum(a != b for a, b in zip(before, after, strict=True)) == len(before) - len(set(before))
        seen: set[int] = set()
        for old, new in zip(before, after, strict=True):  # hardest first
            assert old in seen or new == old
            seen.add(old)
    np.testing.assert_array_equal(deal(owners, world_size), owners)


@settings(max_examples=20)
@given(st.integers(2, 7), st.integers(0, 6))
def test_a_new_record_moves_one_record_per_block_at_most(world_size, entry):
    blocks, rank = 30, entry % world_size
    ledger = np.random.default_rng(entry).permuted(np.tile(np.arange(world_size), (blocks, 1)), axis=1).ravel()
    table = empty_table(world_size, capacity=len(ledger), slots=1)
    table[ledger, np.arange(len(ledger)) // world_size] = np.arange(len(ledger), 0, -1)
    table[rank, blocks] = len(ledger) + 1
    plan = plan_merge(table, ledger, rows=1, capacity=len(ledger), percentile=0)
    assert plan.entered == plan.left == 1 and plan.columns[0] == blocks
    assert plan.moving.sum() <= blocks


def test_a_thousand_ranks_are_planned_at_once():
    rng = np.random.default_rng(0)
    table = empty_table(1024, capacity=4096, slots=64)
    table[:] = rng.random(table.shape)
    ledger = rng.permuted(np.tile(np.arange(1024), (4, 1)), axis=1).ravel()
    times = []
    for _ in range(5):
        start = time.process_time()
        plan = plan_merge(table, ledger, rows=8, capacity=4096, percentile=60)
        times.append(time.process_time() - start)
    np.testing.assert_array_equal(plan.losses, np.sort(plan.losses)[::-1])
    assert (np.bincount(plan.owners) == 4).all()
    assert min(times) < 0.1
