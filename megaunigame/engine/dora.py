"""DoRA where weights are partitioned.

PEFT normalizes the rows of W + scale x B A in a module that owns none of the three. ZeRO-3 gathers a weight for the module
that owns it, so W and A would be empty tensors there: as external parameters of that module they are gathered for its forward
and its backward too. The engine finds such weights by itself, when a pass misses them; they are registered before, so that the
first pass is like all others, and a plan, which has no engine, like a run. B is used by its own module alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config


@contextmanager
def whole_base_weights(ds_config: dict[str, Any]) -> Iterator[None]:
    """Inside, PEFT gathers each partitioned weight whose norms it begins with, one layer at a time."""
    asked_by_peft = HfDeepSpeedConfig(ds_config)  # whether weights are partitioned; known as long as it lives
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del asked_by_peft


def gather_for_norms(model: nn.Module) -> None:
    """Let partitioned weights be gathered where DoRA needs them; nothing for a model without DoRA."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            for adapter, norms in layer.lora_magnitude_vector.items():
                for needed in (layer.get_base_layer(), layer.lora_A[adapter]):
                    deepspeed.zero.register_external_parameter(norms, needed.weight)
