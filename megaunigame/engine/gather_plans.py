"""A plan of gathers for each kind of pass.

ZeRO-3 records the order in which a pass visits the modules, and then gathers weights ahead of their use, many in one call.
It keeps one such trace and discards it when a pass visits the modules in another order. Here passes of several kinds
alternate (generate, understand, the same aside), so nothing would ever be gathered ahead; with one trace per kind, each is
complete from its third pass on.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn


class _AllWhole:
    """In the place of deepspeed's coordinator while all weights are whole: a module finds them, and leaves no trace."""

    def reset_step(self) -> None: ...

    def trace_prologue(self, sub_module: nn.Module) -> None: ...

    def is_record_trace(self) -> bool:
        return False

    def fetch_sub_module(self, current_submodule: nn.Module, forward: bool) -> None: ...

    def release_sub_module(self, submodule: nn.Module, forward: bool = False) -> None: ...


class GatherPlans:
    """Selects the trace of a pass when its forward begins; all gathers until the next forward belong to it."""

    def __init__(self, module: nn.Module, offload: Any, is_aside: Callable[[], bool]):
        """`offload`: the part of the engine's optimizer that gathers and releases weights of `module`."""
        self.offload = offload
        self._is_aside = is_aside
        self._unused = offload.param_coordinator
        self._is_resting = False
        self._of_kind: dict[tuple, Any] = {}
        # First of all hooks: the engine's hook begins a new round of the current trace.
        module.register_forward_pre_hook(self._choose, prepend=True, with_kwargs=True)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Between the learner's passes. Gathers before the first forward in here are on demand, without a trace; the trace of
        the interrupted pass, whose backward may still follow, is restored at the end."""
        interrupted = self.offload.param_coordinator
        self.offload.param_coordinator = self._unused
        try:
            yield
        finally:
            self.offload.param_coordinator = interrupted

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """All weights are whole inside: no pass gathers or releases one, and no trace is recorded or lost."""
        interrupted = self.offload.param_coordinator
        self.offload.param_coordinator, self._is_resting = _AllWhole(), True
        try:
            yield
        finally:
            self.offload.param_coordinator, self._is_resting = interrupted, False

    def _choose(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._is_resting:
            return
        options = (*args[1:], *sorted(kwargs.items()))
        kind = (args[0].pass_name, options, self._is_aside(), module.training, torch.is_grad_enabled())
        if kind not in self._of_kind:
            self._of_kind[kind] = copy.copy(self._unused)
            self._of_kind[kind]._clear_trace_structures()
        self.offload.param_coordinator = self._of_kind[kind]
