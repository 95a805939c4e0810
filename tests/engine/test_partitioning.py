"""Partitioned construction changes parameters and nothing else of a model."""

from __future__ import annotations

import gc
from types import BuiltinFunctionType, FunctionType, ModuleType

import deepspeed
import pytest
import torch
from deepspeed.runtime.zero import partition_parameters
from torch import Tensor, nn

from megaunigame.engine.partitioning import PartitionedParameters
from megaunigame.models.as_given import compute_as_given
from megaunigame.models.base import UnifiedModel
from megaunigame.registry import find
from tests.models.shared import FAMILIES
from tests.multi_process.tiny_run import write_family

LINEAR = torch.nn.functional.linear
CODE = (type, ModuleType, FunctionType, BuiltinFunctionType)


def ds_config(precision: str) -> dict:
    return {
        "train_batch_size": 1,
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": precision == "bf16"},
        "zero_optimization": {"stage": 3},
    }


def tensors_of(thing: object) -> list[Tensor]:
    """Every tensor that can be reached from `thing`, except through modules of code."""
    found, seen, queue = [], set(), [thing]
    while queue:
        here = queue.pop()
        if id(here) in seen or isinstance(here, CODE):
            continue
        seen.add(id(here))
        if isinstance(here, Tensor):
            found.append(here)
        queue += gc.get_referents(here)
    return found


def plain_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Tensors that modules hold as ordinary attributes."""
    return {
        f"{prefix}.{name}": value
        for prefix, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor)
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_only_parameters_meet_the_device_and_the_dtype_of_the_engine(name, precision, world, tmp_path, monkeypatch):
    """`meta` stands for a GPU: what lands there would be a CUDA tensor."""
    monkeypatch.setattr(partition_parameters.dist, "broadcast", lambda *args, **kwargs: pytest.fail("nothing to broadcast"))
    family, folder = find("models", name, UnifiedModel), str(write_family(tmp_path / name, name))
    plain = family.load(folder, max_length=96)
    context = PartitionedParameters(ds_config(precision))
    context.local_device = context.remote_device = torch.device("meta")
    with context:
        processor = family.open_processor(folder, max_length=96)
        model = family.build(folder, processor, attention="sdpa", gradient_checkpointing=False)

    assert torch.nn.functional.linear is LINEAR, "of the whole process"
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    for parameter in model.parameters():
        assert (parameter.device.type, parameter.dtype) == ("meta", wanted)
    on_host = tensors_of(processor)
    assert on_host and all(tensor.device.type == "cpu" for tensor in on_host)
    for part in (lambda m: dict(m.named_buffers()), plain_tensors):
        ours, theirs = part(model), part(plain)
        assert ours.keys() == theirs.keys()
        for key, tensor in theirs.items():
            assert ours[key].dtype == tensor.dtype, key
            assert torch.equal(ours[key], tensor), key
    assert any(buffer.is_floating_point() for buffer in model.buffers()), "no rotary frequencies, nothing was compared"


def test_layers_that_compute_as_given_still_do(world):
    """Their class is another than the one they were made with; in the precision of the weights, weights are freed after it."""
    with PartitionedParameters(ds_config("bf16")):
        layer = nn.Linear(5, 3)
    compute_as_given(layer)
    with deepspeed.zero.GatheredParameters([layer.weight, layer.bias], modifier_rank=0):
        layer.weight.data.fill_(2.0)
        layer.bias.data.fill_(1.0)
        exact = torch.full((2, 5), 1.0 + 2**-12)
        assert torch.equal(layer(exact), torch.full((2, 3), 11.0 + 10 * 2**-12))
        rounded = layer(exact.bfloat16())
    assert rounded.dtype == torch.bfloat16 and rounded.grad_fn.name().startswith("LinearFunctionForZeroStage3")
