"""Context in which a model is constructed with partitioned parameters; buffers and other tensors are unchanged."""

from __future__ import annotations

from typing import Any

import deepspeed
import torch
from torch import nn


class PartitionedParameters(deepspeed.zero.Init):
    """deepspeed's zero.Init for parameters only: those of a module are partitioned over the ranks at its construction.

    zero.Init itself replaces the factories of torch (`torch.tensor`, `torch.arange`, ...): every tensor made inside it is on
    the accelerator in the engine's dtype. Rotary frequencies in bf16 are off by radians at the end of a long sequence, and
    forked loader workers cannot use processors that hold CUDA tensors. Here the factories are unchanged, so buffers and plain
    tensors are on the host, in their own dtype.

    Parameters are left uninitialized, on the device and in the engine's dtype: their weights are loaded later.
    """

    def __init__(self, ds_config: dict[str, Any]):
        # The precision comes from ds_config: an explicit dtype is overruled by bf16 where fp16 is not supported (CPU).
        super().__init__(config_dict_or_path=ds_config, tensor_overrides=())

    def _post_init_method(self, module: nn.Module) -> None:
        """Called by zero.Init after the constructor of every module."""
        for name, parameter in module.named_parameters(recurse=False):
            if not hasattr(parameter, "ds_id"):
                # Not converted: a copy would touch host memory of the size of the model for values that are never read.
                empty = torch.empty(parameter.shape, dtype=self.dtype, device=self.local_device)
                setattr(module, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
        super()._post_init_method(module)
