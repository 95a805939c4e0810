"""Fused kernels of Liger in the layers of one model (`engine.kernels: liger`).

Each kernel reads and writes its tensors once, where torch makes several passes: RMSNorm, the rotary embedding of queries and
keys, and SiLU(gate) x up. Modules of this model alone are changed, not the classes of transformers. They keep their names,
their weights and their hooks, so partitioning, adapters and checkpoints see no difference.

Source: arXiv 2410.10989.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from megaunigame.config import BF16, NONE, EngineConfig
from megaunigame.engine.compiling import lacking
from megaunigame.errors import ConfigError
from megaunigame.models.base import UnifiedModel

PACKAGE = "liger_kernel"
ROTARY = "apply_rotary_pos_emb"
"""Name in transformers' model files."""
NORM, ROTATION, SWIGLU = "RMSNorm", "rotary embedding", "SwiGLU"
"""What has a fused kernel."""


def check_kernels(config: EngineConfig, device: torch.device) -> None:
    """Raise ConfigError, before anything is loaded, for `engine.kernels` that cannot run here."""
    if config.kernels == NONE:
        return
    if device.type != "cuda":
        raise ConfigError(
            f"engine.kernels={config.kernels} needs a GPU, for which Triton compiles its kernels, and this run is on "
            f"{device.type}. Type engine.kernels={NONE}."
        )
    if find_spec(PACKAGE) is None:
        raise ConfigError(
            f"engine.kernels={config.kernels} needs the package liger-kernel. Type pip install 'megaunigame[kernels]', or "
            f"engine.kernels={NONE}."
        )
    if missing := lacking(device, bf16=config.precision == BF16):
        raise ConfigError(f"engine.kernels={config.kernels} cannot run here: {missing}, or engine.kernels={NONE}.")


def fusible(model: UnifiedModel) -> dict[nn.Module, str]:
    """Modules in the layers of the language model -> what a kernel would compute of them. Also of a model without data."""
    modules = (module for layer in model.layers() for module in layer.modules())
    return {module: kind for module in modules if (kind := _kind(module))}


def check_fusible(model: UnifiedModel, config: EngineConfig) -> None:
    """Raise ConfigError for a model that has nothing for the kernels to compute; `model` may be without data."""
    if config.kernels != NONE and not fusible(model):
        raise ConfigError(
            f"engine.kernels={config.kernels}: the layers of {type(model).__name__} have no {NORM}, {ROTATION} or {SWIGLU} as "
            f"the kernels compute it. Type engine.kernels={NONE}."
        )


def use_liger(model: UnifiedModel) -> Mapping[str, int]:
    """Let the kernels compute what they can in the layers of the language model; returns how many modules of each kind."""
    from liger_kernel.transformers.rope import liger_rotary_pos_emb

    found = fusible(model)
    for module, kind in found.items():
        if kind == NORM:
            module.forward = MethodType(_norm, module)
        elif kind == SWIGLU:
            module.forward = MethodType(_swiglu, module)
        else:
            module.forward = MethodType(_with_global(_forward_of(module), ROTARY, liger_rotary_pos_emb), module)
    return Counter(found.values())


def _kind(module: Any) -> str:
    """`NORM`, `ROTATION` or `SWIGLU`, if `module` computes just that (of an attention: also that); else empty."""
    if type(module).__name__.endswith(NORM) and hasattr(module, "variance_epsilon"):
        return NORM
    if all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj")):
        return SWIGLU if isinstance(getattr(module, "act_fn", None), SiLUActivation | nn.SiLU) else ""
    code = getattr(_forward_of(module), "__code__", None)
    return ROTATION if code is not None and ROTARY in code.co_names else ""


def _forward_of(module: nn.Module) -> Any:
    """The function of the module's class, without decorators."""
    return inspect.unwrap(type(module).forward)


def _norm(module: Any, hidden: Tensor) -> Tensor:
    """(..., D) -> (..., D). In float32 until the weight is applied, as in transformers."""
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    # Not in place: the gradient of the output may be that of a residual, too.
    return LigerRMSNormFunction.apply(hidden, module.weight, module.variance_epsilon, 0.0, "llama", False)


def _swiglu(module: Any, hidden: Tensor) -> Tensor:
    """(..., D) -> (..., D)."""
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    return module.down_proj(LigerSiLUMulFunction.apply(module.gate_proj(hidden), module.up_proj(hidden)))


def _with_global(function: Any, name: str, value: Callable[..., Any]) -> FunctionType:
    """A copy of `function` in which one global name has another value."""
    copy = FunctionType(
        function.__code__,
        {**function.__globals__, name: value},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
