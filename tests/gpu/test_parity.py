"""A GPU computes what the CPU computes: losses and gradients of all passes of all families."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from megaunigame.engine.compiling import CompiledLayers
from megaunigame.engine.fused_kernels import PACKAGE, use_liger
from megaunigame.models.base.attention import FLASH, OPEN_MASKS, AttentionNeeds, AttentionSetting, Machine, why_not
from megaunigame.models.causal.model import CausalModel
from megaunigame.registry import find
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


@pytest.mark.parametrize("attention", ["sdpa", *FLASH])
def test_bf16(model, gpu, attention):
    causal = AttentionNeeds("" if find("models", model[0], CausalModel).only_causal else OPEN_MASKS)
    setting = AttentionSetting(Machine.here(gpu), causal, half=True, packed=False)
    if reason := why_not(attention, setting):
        pytest.skip(f"{attention}: {reason}")
    exact = pass_results(*model, CPU, torch.float32)
    rounded = pass_results(*model, CPU, torch.bfloat16)
    for name, result in pass_results(*model, gpu, torch.bfloat16, attention).items():
        distance, allowed = apart(result, exact[name]), apart(rounded[name], exact[name])
        losses, gradients = (max(ROOM * size, FLOOR) for size in (allowed.losses, allowed.gradients))
        assert distance.losses < losses and distance.gradients < gradients, (name, distance, allowed)


@pytest.mark.parametrize("change", [use_liger, CompiledLayers])
def test_fused_kernels_and_compiled_layers_in_float32(model, gpu, change):
    if change is use_liger and find_spec(PACKAGE) is None:
        pytest.skip("liger-kernel is not installed")

    def changed(network):
        network.install_taps()
        change(network)

    expected = pass_results(*model, gpu, torch.float32)
    for name, result in pass_results(*model, gpu, torch.float32, change=changed).items():
        distance = apart(result, expected[name])
        assert distance.losses < FLOAT32_LOSSES and distance.gradients < FLOAT32_GRADIENTS, (name, distance)
