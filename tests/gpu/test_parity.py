"""A GPU computes what the CPU computes: losses and gradients of all passes of all families."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from tests.gpu.parity import apart, pass_results
from tests.models.shared import FAMILIES
from tests.multi_process.tiny_run import write_family

CPU = torch.device("cpu")
FLOAT32_LOSSES, FLOAT32_GRADIENTS = 1e-4, 1e-3
ROOM = 2.0
"""bf16 on a GPU may be this many times as far from float32 as bf16 on the CPU is."""
FLOOR = 1e-3
"""Or this far: a loss that the CPU happens to round well cannot be the measure."""


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    """Family and folder."""
    return request.param, write_family(tmp_path_factory.mktemp(request.param) / "model", request.param)


def test_float32(model, gpu):
    expected = pass_results(*model, CPU, torch.float32)
    for name, result in pass_results(*model, gpu, torch.float32).items():
        distance = apart(result, expected[name])
        assert distance.losses < FLOAT32_LOSSES and distance.gradients < FLOAT32_GRADIENTS, (name, distance)


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_bf16(model, gpu, attention):
    if attention == "flash_attention_2" and find_spec("flash_attn") is None:
        pytest.skip("flash_attn is not installed")
    exact = pass_results(*model, CPU, torch.float32)
    rounded = pass_results(*model, CPU, torch.bfloat16)
    for name, result in pass_results(*model, gpu, torch.bfloat16, attention).items():
        distance, allowed = apart(result, exact[name]), apart(rounded[name], exact[name])
        losses, gradients = (max(ROOM * size, FLOOR) for size in (allowed.losses, allowed.gradients))
        assert distance.losses < losses and distance.gradients < gradients, (name, distance, allowed)
