"""The trained modules of a BAGEL."""

from __future__ import annotations

from torch import nn
from transformers.initialization import no_init_weights

from megaunigame.models.as_given import compute_as_given
from megaunigame.models.bagel.configuration import BagelConfig
from megaunigame.models.bagel.language_model import LanguageModel
from megaunigame.models.bagel.vision import Connector, TimeEmbedder, VisionTower
from megaunigame.models.causal.head import TokenHead

TIME_FREQUENCIES = 256


def trained_parts(config: BagelConfig) -> dict[str, nn.Module]:
    """Children of the model by name, their weights not initialized; built on the device of the surrounding context."""
    width = config.width
    with no_init_weights():
        parts: dict[str, nn.Module] = {
            "model": LanguageModel(config.text),
            "lm_head": TokenHead(width, config.text.vocab_size),
            "vit_model": VisionTower(config.vision, config.vit_max_num_patch_per_side),
            "connector": Connector(config.vision.hidden_size, width),
            "time_embedder": TimeEmbedder(TIME_FREQUENCIES, width),
            "vae2llm": nn.Linear(config.latent_width, width),
            "llm2vae": nn.Linear(width, config.latent_width),
        }
    for name in ("connector", "llm2vae"):
        compute_as_given(parts[name])
    return parts
