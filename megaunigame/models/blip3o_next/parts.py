"""The modules of a BLIP3o-NEXT: Qwen3 with a head that is its embedding, the connector, SANA; and the two frozen ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import Qwen3Model
from transformers.initialization import no_init_weights

from megaunigame.models.as_given import compute_as_given
from megaunigame.models.autoencoder_check import check_latents
from megaunigame.models.blip3o_next.configuration import Blip3oNextConfig
from megaunigame.models.blip3o_next.vq import VisionTokenizer
from megaunigame.models.causal.tied_head import TiedHead
from megaunigame.models.causal.token_embedding import TokenEmbedding
from megaunigame.models.diffusion.modules import autoencoder, normalize_as_given, rms_norm, sana
from megaunigame.models.weights.renamed import RenamedWeights

if TYPE_CHECKING:
    from diffusers import AutoencoderDC

NORM_EPSILON = 1e-5
"""Of the connector, in the official code."""


class FrozenPictures(nn.Module):
    """Both frozen modules under their official names: pixels <-> latents, and pixels -> codes."""

    def __init__(self, config: Blip3oNextConfig):
        super().__init__()
        self.sana_vae: AutoencoderDC = autoencoder(config.vae)
        self.vision_tower = nn.ModuleDict({"vision_tower": VisionTokenizer(config.vq_config)})

    @property
    def tokenizer(self) -> VisionTokenizer:
        return self.vision_tower["vision_tower"]  # type: ignore[return-value]


def check_stored(config: Blip3oNextConfig, weights: RenamedWeights, frozen: RenamedWeights, path: str) -> None:
    """Raises ModelError, naming the setting, for an autoencoder with other latents. `frozen`: weights of both modules."""
    vae = config.vae
    levels = "vae.encoder_block_out_channels", len(vae["encoder_block_out_channels"])
    check_latents(frozen, "sana_vae.", "encoder.down_blocks.", ("vae.latent_channels", vae["latent_channels"]), levels, path)


def connector(config: Blip3oNextConfig) -> nn.Sequential:
    """Hidden states of the language model -> the condition of the transformer; its weights are not initialized."""
    width = config.caption_width
    parts = nn.Sequential(
        nn.Linear(config.text_config.hidden_size, width),
        nn.GELU(approximate="tanh"),
        nn.Linear(width, width),
        rms_norm(width, NORM_EPSILON),
    )
    compute_as_given(parts)
    normalize_as_given(parts)
    return parts


def trained_parts(config: Blip3oNextConfig) -> dict[str, Any]:
    """Children of the model by name, their weights not initialized; built on the device of the surrounding context."""
    text = config.text_config
    with no_init_weights():
        model = Qwen3Model(text)
        model.embed_tokens = TokenEmbedding(text.vocab_size, text.hidden_size)
        head = TiedHead(model.embed_tokens)
        model.diffusion_connector = connector(config)
        model.sana = sana(config.sana)
    return {"model": model, "lm_head": head}
