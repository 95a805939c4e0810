"""Where a model is loaded to, with which numbers, and what is refused before weights are read."""

from __future__ import annotations

import pytest
import torch

from megaunigame.errors import ConfigError
from megaunigame.inference import loading
from megaunigame.inference.loading import device_of
from tests.refusals import refused


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine that shows two GPUs; memory on them cannot be taken."""

    def empty(size: int, device: torch.device) -> None:
        if not usable:
            raise RuntimeError("CUDA error: out of order\nMore.")

    usable = [True]

    monkeypatch.setattr(loading.torch, "empty", empty)
    monkeypatch.setattr(loading.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return usable


def test_cuda_is_the_gpu_of_this_process(two_gpus, monkeypatch):
    assert device_of("cuda") == device_of(torch.device("cuda")) == torch.device("cuda", 0)
    assert device_of("cuda:1") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device_of("cuda") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with refused("No device cuda:2: torch sees 2 GPU(s)", "Give cpu or cuda:0 to cuda:1."):
        device_of("cuda")
    two_gpus.clear()
    with refused("cuda:1 cannot be used: CUDA error: out of order. Give another device."):
        device_of("cuda:1")


@pytest.mark.parametrize("device", ["meta", "mps", "cuda:", "cuda:x", "cpu:0", "gpu", "", "cuda:7\x1b"])
def test_other_devices_are_refused(two_gpus, device):
    with refused(f"--device {device!r}", "is not cpu, cuda or cuda:N"):
        device_of(device)


def test_a_machine_without_gpus_says_so(monkeypatch):
    monkeypatch.setattr(loading.torch.cuda, "device_count", lambda: 0)
    assert device_of("cpu") == device_of(torch.device("cpu")) == torch.device("cpu")
    with refused("No device cuda:3: torch sees 0 GPU(s)", "Give cpu."):
        device_of("cuda:3")


def test_several_processes_take_a_gpu_each(two_gpus, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device_of("cuda").index == device_of("cuda:1").index == 1 and device_of("cpu").type == "cpu"
    with pytest.raises(ConfigError, match="cuda:0 is not the GPU of this process, which is number 1 .* Type --device cuda"):
        device_of("cuda:0")
