from __future__ import annotations

import itertools
import pickle

from hypothesis import given
from hypothesis import strategies as st

from megaunigame.data.sources.order import Order

sizes_with_a_sample = st.lists(st.integers(0, 7), min_size=1, max_size=12).filter(any)
seeds = st.integers(0, 2**40)


@given(sizes=sizes_with_a_sample, seed=seeds, window=st.integers(1, 14))
def test_every_epoch_visits_every_sample_once(sizes, seed, window):
    order = Order(sizes, seed, window)
    everything = {(shard, i) for shard, n in enumerate(sizes) for i in range(n)}
    for epoch in range(3):
        places = [order.locate(p) for p in range(epoch * order.samples, (epoch + 1) * order.samples)]
        assert {e for e, _, _ in places} == {epoch}
        assert len(places) == len(everything) and {(s, i) for _, s, i in places} == everything


@given(sizes=sizes_with_a_sample, seed=seeds, positions=st.lists(st.integers(0, 500), max_size=30))
def test_a_position_means_the_same_however_it_is_reached(sizes, seed, positions):
    walked = Order(sizes, seed, 3)
    assert [walked.locate(p) for p in positions] == [Order(sizes, seed, 3).locate(p) for p in positions]


@given(sizes=st.lists(st.integers(1, 5), min_size=4, max_size=12), window=st.integers(1, 4), seed=seeds)
def test_only_one_window_of_shards_is_live(sizes, window, seed):
    order = Order(sizes, seed, window)
    shards = [order.locate(p)[1] for p in range(order.samples)]
    first = {shard: shards.index(shard) for shard in set(shards)}
    by_visit = sorted(first, key=first.__getitem__)
    # Walking through the epoch, a window of shards is finished before the next one begins.
    start = 0
    while start < len(shards):
        live = set(by_visit[:window])
        length = sum(sizes[s] for s in live)
        assert set(shards[start : start + length]) == live
        for position in (start, start + length - 1, order.samples + start):  # its first, its last, and in the next epoch
            assert position in order.window_of(position)
        assert order.window_of(start) == range(start, start + length) and set(order.shards_of_window(start)) == live
        start, by_visit = start + length, by_visit[window:]


def test_order_changes_with_seed_and_epoch_and_is_fixed_for_ever():
    def epoch(seed: int, number: int) -> list[tuple[int, int]]:
        return [Order([40] * 5, seed).locate(p)[1:] for p in range(number * 200, (number + 1) * 200)]

    orders = [epoch(0, 0), epoch(0, 1), epoch(1, 0), epoch(1, 1)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))
    # A changed order would silently break the resume of every existing run.
    found = [Order([10, 20, 30], seed=7, window=2).locate(p) for p in (0, 1, 35, 60, 10**9)]
    assert found == [(0, 2, 16), (0, 2, 0), (0, 2, 3), (1, 2, 8), (16666666, 2, 22)]


def test_survives_another_process():
    order = Order([3, 4, 5], seed=1, window=2)
    copy = pickle.loads(pickle.dumps(order))
    assert [copy.locate(p) for p in range(24)] == [order.locate(p) for p in range(24)]
