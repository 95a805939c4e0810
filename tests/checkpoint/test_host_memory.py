"""Copies of a save in host memory. There is no GPU here: some tensors only say they are on one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from megaunigame.checkpoint import host_memory
from megaunigame.checkpoint.host_memory import host_copies


def test_copies_leave_the_device_together(monkeypatch):
    """Into pinned memory, one wait for all of them."""
    calls: list[str] = []

    def empty(shape, *, dtype, pin_memory):
        assert pin_memory
        return SimpleNamespace(copy_=lambda source, non_blocking: calls.append(f"copy {source.shape} {non_blocking}"))

    stream = SimpleNamespace(synchronize=lambda: calls.append("wait"))
    monkeypatch.setattr(host_memory.torch, "empty", empty)
    monkeypatch.setattr(host_memory.torch.cuda, "current_stream", lambda device: stream)
    host_copies([SimpleNamespace(shape=n, dtype=torch.float32, is_cuda=True, device="cuda:0") for n in (3, 4)])
    assert calls == ["copy 3 True", "copy 4 True", "wait"]


def test_copies_on_the_host_do_not_change_with_the_learner():
    source = torch.ones(3)
    (copy,) = host_copies([source])
    source.zero_()
    assert torch.equal(copy, torch.ones(3))


@pytest.mark.fault(
    "the driver gives no pinned memory for a save",
    does="a warning; the copies are in ordinary memory, the pause is longer",
    lost="",
)
@pytest.mark.parametrize("error", [RuntimeError("CUDA error: out of memory\nmore"), torch.OutOfMemoryError("odd")])
def test_without_pinned_memory_ordinary_memory_is_used(monkeypatch, caplog, error):
    asked: list[str] = []

    def empty(shape, *, dtype, pin_memory=False):
        asked.append(f"{shape} {'pinned' if pin_memory else 'ordinary'}")
        if pin_memory and shape > 3:
            raise error
        return SimpleNamespace(copy_=lambda source, non_blocking: f"copy of {source.shape}")

    monkeypatch.setattr(host_memory.torch, "empty", empty)
    monkeypatch.setattr(host_memory.torch.cuda, "current_stream", lambda device: SimpleNamespace(synchronize=lambda: None))
    tensors = [SimpleNamespace(shape=n, dtype=torch.float32, is_cuda=True, device="cuda:0", nbytes=4 * n) for n in (3, 4, 5)]
    assert host_copies(tensors) == ["copy of 3", "copy of 4", "copy of 5"]
    assert asked == ["3 pinned", "4 pinned", "4 ordinary", "5 ordinary"]
    assert caplog.text.count("No pinned memory for 16 bytes") == 1


def test_another_error_of_the_device_is_raised(monkeypatch):
    def empty(shape, *, dtype, pin_memory=False):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(host_memory.torch, "empty", empty)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        host_copies([SimpleNamespace(shape=3, dtype=torch.float32, is_cuda=True, device="cuda:0", nbytes=12)])
