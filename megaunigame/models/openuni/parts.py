"""The modules of an OpenUni: those of transformers and diffusers, and the meta queries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import InternVLModel
from transformers.initialization import no_init_weights
from transformers.models.siglip.modeling_siglip import SiglipEncoder

from megaunigame.models.as_given import compute_as_given
from megaunigame.models.causal.head import TokenHead
from megaunigame.models.diffusion.modules import sana
from megaunigame.models.openuni.configuration import OpenUniConfig


class MetaQueries(nn.Module):
    """Learned inputs whose hidden states describe the picture to generate.

    A separate module: ZeRO-3 gathers a parameter in its module's forward only.
    """

    def __init__(self, count: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width))

    def forward(self, rows: int) -> Tensor:
        """(rows, N, D). A copy, because the engine releases the weight after this forward."""
        return self.weight.repeat(rows, 1, 1)


def trained_parts(config: OpenUniConfig) -> dict[str, Any]:
    """Children of the model by name, their weights not initialized; built on the device of the surrounding context."""
    connector = config.connector_config()
    with no_init_weights():
        parts = {
            "model": InternVLModel(config.internvl),
            "lm_head": TokenHead(config.width, config.internvl.text_config.vocab_size),
            "meta_queries": MetaQueries(config.queries, config.width),
            "connector": SiglipEncoder(connector),
            "projector": nn.Linear(connector.hidden_size, config.caption_width),
            "transformer": sana(config.transformer),
        }
        if connector.hidden_size != config.width:
            parts["connector_input"] = nn.Linear(config.width, connector.hidden_size)
    for name in ("connector", "projector", "connector_input"):
        if name in parts:
            compute_as_given(parts[name])
    return parts
