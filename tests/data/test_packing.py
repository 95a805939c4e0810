from __future__ import annotations

import dataclasses
import signal
import time
from dataclasses import dataclass, field

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from megaunigame.data.loading import blocks
from megaunigame.data.loading.loader import MicroBatchLoader
from megaunigame.data.loading.packing import INLINE, Package, pack
from megaunigame.step.inputs import GenerateInputs, PassInputs
from megaunigame.step.requests import UNDERSTAND, RowRequest, StepPlan
from tests.passes import pass_inputs


@dataclass
class Holder:
    inputs: dict[str, PassInputs]
    plan: StepPlan
    aside: dict[str, PassInputs] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)


def inputs(rows: int, side: int, seed: int) -> GenerateInputs:
    made = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1000, (rows, 7), generator=made)
    return pass_inputs(
        GenerateInputs,
        tokens,
        tokens > 3,
        counts=torch.rand(rows, generator=made),
        images=torch.rand(rows, 1, 3, side, side, generator=made).to(torch.bfloat16),
        targets=torch.rand(rows, side, side, 3, generator=made).permute(0, 3, 1, 2),  # not contiguous
        image_positions=torch.empty(0, 7, dtype=torch.bool),
        keys=[f"k{i}" for i in range(rows)],
    )


def holder(side: int, seed: int = 0) -> Holder:
    plan = StepPlan((RowRequest("answer", UNDERSTAND, "s", 3),))
    aside = {"redraw": inputs(1, side, 9), "attack": dataclasses.replace(inputs(1, side, 8), texts=[("q", "a")])}
    return Holder({"a": inputs(3, side, seed), "b": inputs(2, side, seed + 1)}, plan, aside, ["x"])


def same(one: Holder, other: Holder) -> bool:
    pairs = [(one.inputs[n], other.inputs[n]) for n in one.inputs]
    pairs += [(one.aside[n], other.aside[n]) for n in one.aside]
    for a, b in pairs:
        for name, value in vars(a).items():
            got = getattr(b, name)
            if isinstance(value, torch.Tensor):
                assert got.dtype == value.dtype and torch.equal(got, value)
            else:
                assert got == value
    return list(one.inputs) == list(other.inputs) and (one.plan, one.bad) == (other.plan, other.bad)


class Holders(Dataset[Package[Holder]]):
    def __init__(self, side: int):
        self.side = side

    def __getitem__(self, i: int) -> Package[Holder]:
        return pack(holder(self.side, i))


@pytest.fixture
def dead_workers_unheard():
    """torch's loader listens for the death of any process's workers from its first use on: not in later tests."""
    handler = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, handler)


@pytest.mark.usefixtures("dead_workers_unheard")
@pytest.mark.parametrize("side", [4, 64])
@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_packed_comes_out_again(side, workers):
    context = "fork" if workers else None
    loader = DataLoader(Holders(side), sampler=range(6), batch_size=None, num_workers=workers, multiprocessing_context=context)
    for i, packed in enumerate(loader):
        assert (packed.memory.nbytes > INLINE) == (side == 64)
        assert same(holder(side, i), packed.unpacked())


def test_the_original_is_left_alone_and_the_copy_can_be_written_to():
    original = holder(4)
    copy = pack(original).unpacked()
    copy.inputs["a"].tokens.zero_()
    assert same(original, holder(4)) and copy.plan is original.plan


def test_nothing_to_pack():
    assert pack({"a": [1, 2]}).unpacked() == {"a": [1, 2]}


class Numbers:
    """Micro-batches of 320 KB, and as many more as their number says."""

    def made(self, micro_step: int, note: object) -> dict[str, torch.Tensor]:
        return {"number": torch.full((40_000 + micro_step,), micro_step), "half": torch.full((micro_step + 1,), micro_step / 2)}


@pytest.mark.parametrize("size", [blocks.BLOCK, 320_100], ids=["blocks", "most are too large for one"])
@pytest.mark.parametrize(("workers", "prefetch"), [(1, 1), (2, 1), (3, 2)])
def test_memory_that_is_used_again_is_no_memory_of_the_trainer(monkeypatch, workers, prefetch, size):
    """Two loaders at once, whose workers run ahead, and whose micro-batches are all kept."""
    monkeypatch.setattr(blocks, "BLOCK", size)
    kept = []
    for pair in zip(*(MicroBatchLoader(Numbers(), 0, 14, workers, prefetch) for _ in range(2)), strict=True):
        kept.append(pair)
        time.sleep(0.01)
    for number, pair in enumerate(kept):
        for batch in pair:
            expected = Numbers().made(number, None)
            assert all(torch.equal(batch[name], expected[name]) for name in expected)
