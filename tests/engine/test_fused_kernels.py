"""Liger's kernels compute what the layers compute, in modules of one model alone, and are refused where they cannot run.

On a CPU, Triton's interpreter runs them; skipped where liger-kernel is missing (pip install 'megaunigame[kernels]').
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel, PhiConfig, PhiModel, Qwen3Config, Qwen3Model

from megaunigame.config import EngineConfig
from megaunigame.engine import fused_kernels
from megaunigame.engine.fused_kernels import PACKAGE, check_fusible, check_kernels, fusible
from megaunigame.errors import ConfigError
from megaunigame.models.base import UnifiedModel
from megaunigame.registry import find
from tests.models.shared import FAMILIES, built, write_clear

REPOSITORY = Path(__file__).resolve().parents[2]
SHAPE = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 16},
    **{"use_cache": False, "pad_token_id": 0},
}
MODELS = {
    "llama": lambda: LlamaModel(LlamaConfig(**SHAPE, num_key_value_heads=2)),
    "qwen3": lambda: Qwen3Model(Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=8)),
    "phi": lambda: PhiModel(PhiConfig(**SHAPE)),  # rotates a part of each head
}
FOUND = {
    "llama": {"RMSNorm": 4, "rotary embedding": 2, "SwiGLU": 2},
    "qwen3": {"RMSNorm": 8, "rotary embedding": 2, "SwiGLU": 2},
    "phi": {"rotary embedding": 2},
}
LIGER = EngineConfig(kernels="liger")


def with_layers(model: nn.Module) -> SimpleNamespace:
    return SimpleNamespace(layers=lambda: list(model.layers))


def compared(name: str) -> dict:
    """Called in a process with Triton's interpreter: relative differences of states and gradients with and without kernels."""
    import numpy
    from liger_kernel.ops import rms_norm
    from triton import language
    from triton.runtime import interpreter

    convert = interpreter._implicit_cvt

    def with_floats(value):
        """The interpreter hands floats on as they are, and has no `rsqrt`."""
        if isinstance(value, float):
            handle = interpreter.TensorHandle(numpy.array([value], dtype=numpy.float32), language.float32)
            return language.tensor(handle, language.float32)
        return convert(value)

    interpreter._implicit_cvt, rms_norm.rsqrt = with_floats, lambda value: 1.0 / language.sqrt(value)
    results, found = [], {}
    given = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(1))
    wanted = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(2))
    for fused in (False, True):
        torch.manual_seed(0)
        model = MODELS[name]()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        if fused:
            found = fused_kernels.use_liger(with_layers(model))
        hidden = given.clone().requires_grad_()
        states = model(inputs_embeds=hidden).last_hidden_state
        (states * wanted).sum().backward()
        gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        results.append({"states": states.detach(), "input": hidden.grad, **gradients})
    plain, ours = results
    return {
        "found": dict(found),
        "compared": len(plain),
        "apart": max(((ours[key] - value).norm() / value.norm()).item() for key, value in plain.items()),
    }


@pytest.mark.skipif(find_spec(PACKAGE) is None, reason="liger-kernel is not installed")
@pytest.mark.parametrize("name", MODELS)
def test_states_and_gradients_are_those_of_the_layers(name):
    program = f"import json; from tests.engine.test_fused_kernels import compared; print(json.dumps(compared({name!r})))"
    environment = dict(os.environ, TRITON_INTERPRET="1")
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["found"] == FOUND[name] and result["compared"] > 10
    assert result["apart"] < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_something_to_fuse(name, tmp_path):
    """Found on a model without data, before its weights are read."""
    write_clear(name, tmp_path)
    family = find("models", name, UnifiedModel)
    with torch.device("meta"):
        model = built(family, tmp_path, max_length=160)
    kinds = list(fusible(model).values())
    layers = len(model.layers())
    assert kinds.count("rotary embedding") == layers
    assert kinds.count("SwiGLU") == (0 if name == "show_o" else 2 * layers if name == "bagel" else layers)
    assert (kinds.count("RMSNorm") == 0) == (name == "show_o")
    check_fusible(model, LIGER)


def test_a_model_with_nothing_to_fuse_is_refused():
    model = with_layers(SimpleNamespace(layers=[nn.Linear(2, 2)]))
    check_fusible(model, EngineConfig())
    with pytest.raises(ConfigError, match="engine.kernels=liger: the layers of .* have no RMSNorm, .*Type engine.kernels=none"):
        check_fusible(model, LIGER)


def test_only_what_computes_the_same_is_found():
    """Not an MLP with another activation, nor a norm that adds 1 to its weight."""
    llama = MODELS["llama"]()
    llama.layers[0].mlp.act_fn = nn.GELU()
    del llama.layers[0].input_layernorm.variance_epsilon
    kinds = list(fusible(with_layers(llama)).values())
    assert kinds.count("SwiGLU") == 1 and kinds.count("RMSNorm") == 3


def test_kernels_that_cannot_run_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match="engine.kernels=liger needs a GPU.*this run is on cpu. Type engine.kernels=none"):
        check_kernels(LIGER, torch.device("cpu"))
    monkeypatch.setattr(fused_kernels, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package liger-kernel. Type pip install 'megaunigame\[kernels\]', or"):
        check_kernels(LIGER, torch.device("cuda", 0))
    monkeypatch.setattr(fused_kernels, "find_spec", lambda name: object())
    monkeypatch.setattr(fused_kernels, "lacking", lambda device, bf16: "no C compiler is found. Install it" if bf16 else "")
    with pytest.raises(ConfigError, match="engine.kernels=liger cannot run here: no C compiler.*or engine.kernels=none"):
        check_kernels(EngineConfig(kernels="liger", precision="bf16"), torch.device("cuda", 0))
    check_kernels(EngineConfig(kernels="liger", precision="fp32"), torch.device("cuda", 0))
    check_kernels(EngineConfig(), torch.device("cpu"))
