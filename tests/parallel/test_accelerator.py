"""The device of a run: never a CPU that nobody asked for, and kernels that round as the docs say."""

from __future__ import annotations

import os
from unittest.mock import Mock

import pytest
import torch

from megaunigame.errors import ConfigError
from megaunigame.parallel import accelerator
from megaunigame.parallel.ranks import _backend


def test_the_cpu_is_chosen_only_where_it_was_asked_for(monkeypatch):
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert accelerator.choose_device(3) == torch.device("cpu")
    monkeypatch.delenv("DS_ACCELERATOR")
    with pytest.raises(ConfigError, match="No GPU can be used.*type DS_ACCELERATOR=cpu before"):
        accelerator.choose_device(0)


def test_the_refusal_says_why_cuda_cannot_start(monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    too_old = RuntimeError("The NVIDIA driver on your system is too old (found version 12040).\nMore.")
    monkeypatch.setattr(torch.cuda, "init", Mock(side_effect=too_old))
    with pytest.raises(ConfigError, match=r"driver on your system is too old \(found version 12040\)\. To run"):
        accelerator.choose_device(0)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(ConfigError, match="is built for the CPU"):
        accelerator.choose_device(0)


def test_one_process_per_gpu(monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert accelerator.choose_device(1) == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match="process 2 of its machine.*shows 2 GPU.*--num_gpus 2"):
        accelerator.choose_device(2)


@pytest.fixture
def torch_flags(monkeypatch):
    """TF32 is on; after the test torch's flags are what they were."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, True
    yield
    torch.backends.cuda.matmul.allow_tf32 = before
    torch.use_deterministic_algorithms(False)


def test_float32_on_a_gpu_is_not_rounded_to_tf32(monkeypatch, torch_flags):
    accelerator.configure(torch.device("cpu"), deterministic=False)
    assert torch.backends.cudnn.allow_tf32
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    accelerator.configure(torch.device("cuda", 1), deterministic=False)
    assert chosen == [torch.device("cuda", 1)]
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    assert not torch.are_deterministic_algorithms_enabled()


def test_deterministic_kernels_with_the_workspace_they_need(monkeypatch, torch_flags):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    accelerator.configure(torch.device("cpu"), deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_the_allocator_grows_its_blocks_unless_the_user_set_it(monkeypatch):
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    accelerator.use_expandable_segments()
    assert [os.environ[name] for name in names] == ["expandable_segments:True"] * 2
    monkeypatch.setenv(names[0], "max_split_size_mb:64")
    monkeypatch.delenv(names[1])
    accelerator.use_expandable_segments()
    assert os.environ[names[0]] == "max_split_size_mb:64" and names[1] not in os.environ


def test_objects_travel_over_the_host_and_tensors_over_the_gpus():
    device = torch.device("cuda", 3)
    assert _backend(device) == {"backend": "cpu:gloo,cuda:nccl", "device_id": device}
    assert _backend(torch.device("cpu")) == {"backend": "gloo"}


@pytest.mark.parametrize(("device", "native", "said"), [("cpu", False, True), ("cpu", True, False), ("cuda", False, False)])
def test_a_cpu_without_bf16_instructions_is_told(device, native, said, monkeypatch, caplog):
    monkeypatch.setattr(accelerator, "cpu_computes_bf16", lambda: native)
    accelerator.warn_of_slow_bf16(torch.device(device))
    assert ("type engine.precision=fp32" in caplog.text) == said
