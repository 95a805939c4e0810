from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megaunigame.config import MixedConfig, StreamConfig
from megaunigame.data.loading.loader import MicroBatchLoader
from megaunigame.data.loading.stream import MicroBatches
from megaunigame.data.sources.base import SampleRef
from megaunigame.data.sources.blend import Blend
from megaunigame.data.sources.opening import open_stream
from megaunigame.data.sources.order import Order
from megaunigame.errors import ConfigError, DataError
from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, StepPlan
from tests.data.shard_files import number_batches, sample_fields, stored_cursors, write_shards

PLAN = StepPlan((RowRequest("answer", UNDERSTAND, "train", 2), RowRequest("pixel", GENERATE, "train", 1)))
CHAT = 100_000
"""Numbers of the second data set's samples start here."""


class Counted:
    """A source without files: its sample at a position is named `NAME:index`."""

    def __init__(self, name: str, samples: int, seed: int):
        self.location, self.seed, self.identity = name, seed, {"samples": samples}
        self.epoch = samples
        self.order = Order([samples], seed)

    def find(self, position: int, attempt: int) -> SampleRef:
        key = f"{self.location}:{self.order.locate(position)[2]}"
        return SampleRef(key, "0.tar", dict, lambda: None)


def blend(sizes: list[int], weights: list[int], seed: int) -> Blend:
    sources = {f"s{i}": Counted(f"s{i}", size, seed + i) for i, size in enumerate(sizes)}
    return Blend(sources, {f"s{i}": weight for i, weight in enumerate(weights)}, seed)


several = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 7)), min_size=1, max_size=4).map(
    lambda pairs: ([size for size, _ in pairs], [weight for _, weight in pairs])
)
"""Sizes and weights of one to four sources."""


@settings(max_examples=60, deadline=None)
@given(several, st.integers(0, 2**63), st.integers(0, 10**12))
def test_weights_are_met_exactly_in_every_block(shape, seed, block):
    mixed = blend(*shape, seed)
    start = block * mixed.block
    sources = Counter(mixed.locate(p)[0] for p in range(start, start + mixed.block))
    assert [sources[i] for i in range(len(mixed.weights))] == list(mixed.weights)
    total, asked = sum(mixed.weights), shape[1]
    assert all(int(w) * sum(asked) == a * total for w, a in zip(mixed.weights, asked, strict=True))


@settings(max_examples=40, deadline=None)
@given(several, st.integers(0, 2**63))
def test_every_source_runs_through_its_own_epochs(shape, seed):
    sizes, _ = shape
    mixed = blend(*shape, seed)
    seen: dict[int, list[int]] = {i: [] for i in range(len(sizes))}
    samples: dict[int, list[str]] = {i: [] for i in range(len(sizes))}
    for position in range(12 * mixed.block):
        source, inner = mixed.locate(position)
        seen[source].append(inner)
        samples[source].append(mixed.find(position, 0).key)
    for i, size in enumerate(sizes):
        assert seen[i] == list(range(len(seen[i])))  # nothing is skipped and nothing comes twice
        for epoch in range(len(samples[i]) // size):
            assert len(set(samples[i][epoch * size : (epoch + 1) * size])) == size


@settings(max_examples=30, deadline=None)
@given(several, st.integers(0, 2**63), st.integers(0, 10**15))
def test_a_far_position_is_found_as_the_near_ones_are(shape, seed, far):
    """Positions found in any order, by an object that has seen nothing before, are the same."""
    mixed = blend(*shape, seed)
    positions = [far, 3, far + 1, 0, far - far % mixed.block]
    together = [mixed.locate(p) for p in positions]
    assert together == [blend(*shape, seed).locate(p) for p in positions]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("mix")
    write_shards(root / "images", [7, 5, 6], columns=lambda n: {"clip": n / 100})
    write_shards(root / "chat", [4, 3], lambda n: {"json": sample_fields(CHAT + n)["json"]})
    return root


def mix(folders, **changed) -> StreamConfig:
    parts = {
        "images": MixedConfig(str(folders / "images"), weight=3, window=2, where=["clip >= 0.04"]),
        "chat": MixedConfig(str(folders / "chat"), weight=1),
    }
    return StreamConfig(mix={**parts, **changed})


def batches(folders, accumulation=1, rank=0, world_size=1, cursor=None) -> MicroBatches:
    streams = {"train": open_stream("train", mix(folders), 5, cursor)}
    return number_batches(PLAN, streams, None, accumulation, rank, world_size)


def numbers(batch) -> list[int]:
    return [n for inputs in batch.inputs.values() for n in inputs.tokens[:, 0].tolist()]


def test_restarts_world_sizes_and_workers_lose_and_repeat_nothing(folders):
    cursor, seen = None, []
    for world, accumulation, steps, workers in ((1, 1, 5, 0), (2, 1, 4, 2), (1, 3, 3, 1), (4, 2, 2, 0), (2, 2, 3, 2)):
        ranks = [batches(folders, accumulation, rank, world, cursor) for rank in range(world)]
        loaded = [list(MicroBatchLoader(r, 0, steps * accumulation, workers)) for r in ranks]
        for step in range(steps):
            of_step = [n for rank in loaded for b in rank[step * accumulation : (step + 1) * accumulation] for n in numbers(b)]
            seen.append(sorted(of_step))
        cursor = stored_cursors(ranks[0].cursors(steps))["train"]
    flat = [n for step in seen for n in step]
    assert cursor.position == len(flat)
    source = open_stream("train", mix(folders), 5).source
    alone = [int(json.loads(source.find(p, 0).read()["json"])["number"]) for p in range(len(flat))]
    assert sorted(flat) == sorted(alone)
    start = 0
    for step in seen:
        assert step == sorted(alone[start : start + len(step)])
        start += len(step)
    for wanted in (range(4, 18), range(CHAT, CHAT + 7)):
        visits = [n for n in alone if n in wanted]
        for epoch in range(len(visits) // len(wanted)):
            assert sorted(visits[epoch * len(wanted) : (epoch + 1) * len(wanted)]) == list(wanted)
    assert sum(n >= CHAT for n in alone[: len(alone) // 4 * 4]) == len(alone) // 4


def test_blocks_and_seeds_have_different_orders():
    def order(seed, block):
        mixed = blend([50, 50], [4, 5], seed)
        return tuple(mixed.locate(block * mixed.block + offset)[0] for offset in range(mixed.block))

    assert len({order(3, block) for block in range(12)}) > 6 and len({order(seed, 0) for seed in range(12)}) > 6


def test_sources_of_the_same_shards_have_different_orders(folders):
    config = StreamConfig(mix={n: MixedConfig(str(folders / "images")) for n in ("a", "b")})
    source = open_stream("train", config, 5).source
    orders = {0: [], 1: []}
    for position in range(36):
        orders[source.locate(position)[0]].append(source.find(position, 0).key)
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]
    assert source.find(0, 0).shard in {f"{n}/data-00000{i}.tar" for n in "ab" for i in range(3)}


def test_a_changed_mix_is_another_stream(folders):
    cursor = open_stream("train", mix(folders), 5).cursor
    heavier = mix(folders, chat=MixedConfig(str(folders / "chat"), weight=2))
    six = MixedConfig(str(folders / "images"), weight=6, window=2, where=["clip >= 0.04"])
    open_stream("train", mix(folders, images=six, chat=heavier.mix["chat"]), 5, cursor)  # the same proportions
    with pytest.raises(DataError, match=r"chat\.weight \(in lowest terms\) 1, this run has 2"):
        open_stream("train", heavier, 5, cursor)
    with pytest.raises(DataError, match=r"images\.where"):
        open_stream("train", mix(folders, images=MixedConfig(str(folders / "images"), weight=3, window=2)), 5, cursor)


def test_errors_name_the_data_set(folders):
    with pytest.raises(DataError, match=r"data\.train\.mix\.chat: .*no sample has the column"):
        open_stream("train", mix(folders, chat=MixedConfig(str(folders / "chat"), where=["clip > 0"])), 5)
    with pytest.raises(ConfigError, match="whole numbers from 1 on; got {'s1': 0}"):
        blend([3, 3], [1, 0], 0)
