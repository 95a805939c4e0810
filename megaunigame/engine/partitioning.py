"""Context in which a model is constructed with partitioned parameters; buffers and other tensors are unchanged."""

from __future__ import annotations

from types import MethodType
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero.linear import zero3_linear_wrap
from torch import Tensor, nn


class PartitionedParameters(deepspeed.zero.Init):
    """deepspeed's zero.Init for parameters only: those of a module are partitioned over the ranks at its construction.

    zero.Init itself replaces the factories of torch (`torch.tensor`, `torch.arange`, ...): every tensor made inside it is on
    the accelerator in the engine's dtype. Rotary frequencies in bf16 are off by radians at the end of a long sequence, and
    forked loader workers cannot use processors that hold CUDA tensors. Here the factories are unchanged, so buffers and plain
    tensors are on the host, in their own dtype.

    Parameters are left uninitialized, on the device and in the engine's dtype: their weights are loaded later. zero.Init
    broadcasts what a constructor put into them; here that is nothing, and there is no collective.

    zero.Init also replaces `torch.nn.functional.linear`, in the whole process and for good: torch's own keeps a view of the
    weight for the backward, so that a gathered weight is not freed after the forward. Here the linear layers of this model
    alone get the other function, unless `zero_optimization.memory_efficient_linear` is false.
    """

    def __init__(self, ds_config: dict[str, Any]):
        # The precision comes from ds_config: an explicit dtype is overruled by bf16 where fp16 is not supported (CPU).
        super().__init__(config_dict_or_path=ds_config, tensor_overrides=())
        self._frees_weights = bool(self.mem_efficient_linear)  # type: ignore[has-type]
        self.mem_efficient_linear = False
        self._constructing = False

    def _post_init_method(self, module: nn.Module) -> None:
        """Called by zero.Init after the constructor of every module."""
        for name, parameter in module.named_parameters(recurse=False):
            if not hasattr(parameter, "ds_id"):
                # Not converted: a copy would touch host memory of the size of the model for values that are never read.
                empty = torch.empty(parameter.shape, dtype=self.dtype, device=self.local_device)
                setattr(module, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
        if self._frees_weights and type(module).forward is nn.Linear.forward:
            module.forward = MethodType(_linear, module)  # type: ignore[method-assign]
        self._constructing = True
        try:
            super()._post_init_method(module)
        finally:
            self._constructing = False

    def _zero_init_param(self, parameter: nn.Parameter) -> None:
        """Called by zero.Init for every parameter, also for adapters later on: those have values, which are broadcast."""
        if not self._constructing:
            super()._zero_init_param(parameter)
            return
        self._convert_to_deepspeed_param(parameter)
        parameter.partition()  # type: ignore[attr-defined]


def _linear(layer: nn.Linear, hidden: Tensor) -> Tensor:
    """As the class of the layer; the graph refers to the parameter, not to what it holds now. A layer may get another class
    after it was made: one that converts its weights to the precision of the input."""
    if hidden.dtype != layer.weight.dtype:
        return type(layer).forward(layer, hidden)
    return zero3_linear_wrap(hidden, layer.weight, layer.bias)
