"""Bytes counted against sums made by hand, on real, meta and fake tensors."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from megaunigame.engine.live_bytes import LiveBytes

DEVICES = ["cpu", "meta", "fake"]
SIZE = 4 * 1000
"""Bytes of `vector()`."""


def fake(device):
    return FakeTensorMode() if device == "fake" else nullcontext()


def vector(device, **options):
    return torch.ones(1000, device="cpu" if device == "fake" else device, **options)


@pytest.mark.parametrize("device", DEVICES)
def test_a_tensor_counts_once_and_until_it_is_freed(device):
    with fake(device), LiveBytes() as live:
        whole = vector(device)
        part = whole[10:20]
        whole.add_(1)
        assert live.current == live.peak == SIZE
        half = whole.to(torch.bfloat16)
        assert live.current == SIZE + SIZE // 2
        del whole
        assert live.current == SIZE + SIZE // 2, "a view keeps its storage alive"
        del part
        assert live.current == SIZE // 2
    del half
    assert (live.current, live.peak) == (0, SIZE + SIZE // 2), "what is freed later is followed too"


@pytest.mark.parametrize("device", DEVICES)
def test_what_was_there_does_not_count(device):
    with fake(device):
        before = vector(device)
        with LiveBytes() as live:
            views = before[3:], before.view(10, 100).T, before.mul_(2)
            assert live.current == 0
            del views
        assert live.current == 0


@pytest.mark.parametrize("device", DEVICES)
def test_the_graph_is_counted_and_so_is_the_backward(device):
    with fake(device):
        leaf = vector(device, requires_grad=True)
        with LiveBytes() as live:
            result = leaf.exp().sin().cos().sum()
            assert live.current == 3 * SIZE - SIZE + 4, "sin keeps exp's result, cos that of sin, nobody that of cos"
            assert live.peak == 3 * SIZE + 4
            live.reset_peak()
            assert live.peak == live.current
            result.backward()
            del result
            assert live.current == SIZE, "the gradient of the leaf"
            assert 3 * SIZE < live.peak <= 5 * SIZE + 8


@pytest.mark.parametrize("device", DEVICES)
def test_a_checkpoint_lowers_what_is_kept(device):
    def chain(x):
        for _ in range(8):
            x = x.sin()
        return x

    kept, peaks = [], []
    for run in (chain, lambda x: checkpoint(chain, x, use_reentrant=False)):
        with fake(device):
            leaf = vector(device, requires_grad=True)
            with LiveBytes() as live:
                result = run(leaf)
                kept.append(live.current)
                result.sum().backward()
                peaks.append(live.peak)
                del result
    assert kept == [8 * SIZE, SIZE]
    assert peaks[1] > 7 * SIZE, "the recomputation holds what the plain graph keeps"
