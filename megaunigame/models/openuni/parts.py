"""The modules of an OpenUni: those of transformers and diffusers, and the meta queries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import InternVLModel
from transformers.initialization import no_init_weights
from transformers.models.siglip.modeling_siglip import SiglipEncoder

from megaunigame.errors import ModelError
from megaunigame.models.as_given import compute_as_given
from megaunigame.models.causal.head import TokenHead
from megaunigame.models.openuni.configuration import OpenUniConfig

if TYPE_CHECKING:
    from diffusers import AutoencoderDC


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


def diffusers_class(name: str) -> Any:
    """A class of diffusers, which only this family needs. Raises ModelError when it is not installed."""
    try:
        import diffusers
    except ImportError as error:
        raise ModelError("OpenUni needs the package diffusers; type: pip install 'megaunigame[diffusion]'") from error
    return getattr(diffusers, name)


def trained_parts(config: OpenUniConfig) -> dict[str, Any]:
    """Children of the model by name, their weights not initialized; built on the device of the surrounding context."""
    transformer = diffusers_class("SanaTransformer2DModel")
    connector = config.connector_config()
    with no_init_weights():
        parts = {
            "model": InternVLModel(config.internvl),
            "lm_head": TokenHead(config.width, config.internvl.text_config.vocab_size),
            "meta_queries": MetaQueries(config.queries, config.width),
            "connector": SiglipEncoder(connector),
            "projector": nn.Linear(connector.hidden_size, config.caption_width),
            "transformer": transformer(**config.transformer),
        }
        if connector.hidden_size != config.width:
            parts["connector_input"] = nn.Linear(config.width, connector.hidden_size)
    for name in ("connector", "projector", "transformer", "connector_input"):
        if name in parts:
            compute_as_given(parts[name])
    _normalize_as_given(parts["transformer"])
    return parts


def autoencoder(config: OpenUniConfig) -> AutoencoderDC:
    """diffusers' AutoencoderDC, its weights not initialized."""
    kind = diffusers_class("AutoencoderDC")
    with no_init_weights():
        return kind(**config.autoencoder)


def _normalize_as_given(transformer: nn.Module) -> None:
    """diffusers' RMSNorm rounds to the precision of its weights; from now on it keeps that of its input."""
    from diffusers.models.normalization import RMSNorm

    class RMSNormAsGiven(RMSNorm):
        def forward(self, hidden_states: Tensor) -> Tensor:
            if self.weight is None or hidden_states.dtype == self.weight.dtype:
                return super().forward(hidden_states)
            scale = torch.rsqrt(hidden_states.float().square().mean(-1, keepdim=True) + self.eps)
            normal = hidden_states * scale * self.weight
            return (normal if self.bias is None else normal + self.bias).to(hidden_states.dtype)

    for layer in transformer.modules():
        if type(layer) is RMSNorm:
            layer.__class__ = RMSNormAsGiven
