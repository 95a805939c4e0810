"""Compiled layers of the language model (`engine.compile: layers`), under ZeRO-2.

Each layer is one function to torch.compile: with other lengths of rows in every step, it is compiled for any length, and all
layers have the graphs in common. Three things stay outside of the graphs:

- attention, which is one kernel already, and where taps, packs and masks come in: its functions are marked (`attention/`);
- gradient checkpointing, around the compiled function, so that its recomputation runs the same graphs;
- reads with a cache (answers, pictures), whose length grows by one in each call; and the step whose operations are counted.

Under ZeRO-3, hooks gather the weights of each module inside a layer. Each of them ends a graph (`python -m
tests.benchmarks.compiled`), so it is refused.
"""

from __future__ import annotations

import logging
import os
import shutil
import sysconfig
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import lookup_backend
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from transformers.modeling_layers import GradientCheckpointingLayer

from megaunigame.config import BF16, LAYERS, NONE, EngineConfig
from megaunigame.errors import ConfigError, ModelError
from megaunigame.models.base import UnifiedModel
from megaunigame.parallel.accelerator import capability

log = logging.getLogger(__name__)

INDUCTOR = "inductor"
VARIANTS = 32
"""Graphs of one part of a layer that torch keeps: with and without gradients, one row and several, each pass. torch's own
number is 8."""
OLDEST_GPU = (7, 0)
"""Compute capability that Triton's kernels need (Volta)."""
OLDEST_OF_BF16 = (8, 0)
"""With bf16 (Ampere): on older ones torch leaves out such graphs."""
CACHES = ("past_key_values", "cache")
"""Names under which a layer is given its cache, by transformers' release."""
LIMIT_HIT = "torch._dynamo hit config."
"""Begin of the line that torch logs once it computes a part of a layer uncompiled."""


def check_compile(config: EngineConfig, stage: int, device: torch.device) -> None:
    """Raise ConfigError, before anything is loaded, for `engine.compile` where layers cannot be compiled."""
    if config.compile == NONE:
        return
    if reason := _why_not(config, stage, device):
        raise ConfigError(f"engine.compile={config.compile} cannot run here: {reason}, or engine.compile={NONE}.")


def _why_not(config: EngineConfig, stage: int, device: torch.device) -> str:
    """With what to type in its place; empty: it can."""
    if stage == 3:
        return (
            "ZeRO-3 gathers the weights of each module in hooks, and every hook ends a graph (docs/engine.md#compiled-layers). "
            "Type engine.ds_config=ds_configs/zero2.json"
        )
    if config.kernels != NONE:
        return f"torch would have to compile around the kernels of {config.kernels}. Type engine.kernels={NONE}"
    if config.sequence_ranks > 1:
        return "it was not tried on ranks that share rows. Type engine.sequence_ranks=1"
    return lacking(device, bf16=config.precision == BF16)


def lacking(device: torch.device, *, bf16: bool) -> str:
    """What is missing here to make kernels, with what to do about it; empty: nothing. Triton's for a GPU, torch's for a CPU."""
    least = OLDEST_OF_BF16 if bf16 else OLDEST_GPU
    if device.type == "cuda" and capability(device) < least:
        oldest, (major, minor) = ".".join(map(str, least)), capability(device)
        return f"it needs a GPU of compute capability {oldest} or newer, and this one has {major}.{minor}. Take another GPU"
    compiler = _c_compiler() if device.type == "cuda" else _cpp_compiler()
    if compiler:
        return f"{compiler} Install it"
    header = os.path.join(sysconfig.get_path("include"), "Python.h")
    if not os.path.isfile(header):
        return f"there is no {header}. Install the headers of this Python (python3-dev)"
    return ""


def _c_compiler() -> str:
    """What Triton lacks to build its launchers; empty: nothing."""
    named = os.environ.get("CC")
    found = any(shutil.which(name) for name in ([named] if named else ["gcc", "clang", "cc"]))
    return "" if found else f"no C compiler is found ({f'CC={named}' if named else 'gcc, clang'})."


def _cpp_compiler() -> str:
    """What torch lacks to build kernels for a CPU; empty: nothing."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "no C++ compiler is found (g++; CXX names another)."
    return ""


def keep_attention_apart(model: UnifiedModel) -> None:
    """Let the attention of the layers be one function outside of the graphs. Also of a model without data.

    Raises ModelError for a model without layers, or whose attention cannot be intercepted.
    """
    if not model.layers():
        raise ModelError(
            f"engine.compile={LAYERS}: {type(model).__name__} does not tell its layers. Type engine.compile={NONE}."
        )
    model.install_taps()


class _LimitHit(logging.Handler):
    """Sees torch say that it has compiled one part of a layer too often, and says once what that means."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seen = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self.seen and record.getMessage().startswith(LIMIT_HIT):
            self.seen = True
            log.warning(
                f"engine.compile={LAYERS}: torch has compiled a part of a layer {VARIANTS} times, and computes it uncompiled "
                "where none of these fits. Losses are the same; steps may be slower. TORCH_LOGS=recompiles shows the reasons. "
                "This is said once."
            )


LIMIT = _LimitHit()
"""Of this process, as torch's number of graphs is."""


class CompiledLayers:
    """The layers of a model, compiled when they are first used."""

    def __init__(self, model: UnifiedModel, backend: str = INDUCTOR):
        """After `keep_attention_apart`. `backend`: one of torch.compile, which makes the code of a graph."""
        self.backend = backend
        self.graphs = 0
        """Compiled so far by this rank."""
        LIMIT.seen = False
        logging.getLogger("torch._dynamo.convert_frame").addHandler(LIMIT)
        compiled: dict[Callable[..., Any], Callable[..., Any]] = {}
        for layer in model.layers():
            plain = uncheckpointed_forward(layer)
            if plain not in compiled:
                # torch's type hints lack the limit.
                options: dict[str, Any] = {"backend": self._make, "dynamic": True, "recompile_limit": VARIANTS}
                compiled[plain] = torch.compile(plain, **options)
            layer.forward = _forward(layer, plain, compiled[plain])

    @property
    def has_hit_limit(self) -> bool:
        """Whether torch has stopped compiling a part of a layer, and computes it uncompiled for shapes that are new."""
        return LIMIT.seen

    def _make(self, graph: Any, inputs: list[Tensor]) -> Callable[..., Any]:
        """Called by torch for each graph."""
        self.graphs += 1
        make = lookup_backend(self.backend)
        if self.backend != INDUCTOR:
            return make(graph, inputs)  # type: ignore[no-any-return, arg-type]
        # Dropout is to drop what it would drop uncompiled.
        return make(graph, inputs, config_patches={"fallback_random": True})  # type: ignore[no-any-return, call-arg, arg-type]


def uncheckpointed_forward(layer: nn.Module) -> Callable[..., Any]:
    """The forward of a layer's class, without the gradient checkpointing that transformers wraps around it."""
    forward = type(layer).forward
    return forward.__wrapped__ if isinstance(layer, GradientCheckpointingLayer) else forward  # type: ignore[attr-defined]


def _forward(layer: Any, plain: Callable[..., Any], compiled: Callable[..., Any]) -> Callable[..., Any]:
    """What `layer` does when it is called."""

    def forward(*args: Any, **options: Any) -> Any:
        if any(options.get(name) is not None for name in CACHES) or is_in_torch_dispatch_mode():
            return type(layer).forward(layer, *args, **options)
        if layer.training and getattr(layer, "gradient_checkpointing", False):
            return layer._gradient_checkpointing_func(partial(compiled, layer, **options), *args)
        return compiled(layer, *args, **options)

    return forward
