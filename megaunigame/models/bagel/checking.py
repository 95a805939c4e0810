"""Whether the weights of a BAGEL folder have the layout of its configuration: what is missing, and which setting is another's.

Only names and shapes are read. The position tables of a checkpoint are not used, but tell the settings of its training.
"""

from __future__ import annotations

from math import isqrt

from megaunigame.errors import ModelError
from megaunigame.models.autoencoder_check import VQGAN_LEVELS, check_latents
from megaunigame.models.bagel.configuration import BagelConfig
from megaunigame.models.bagel.files import AUTOENCODER as AUTOENCODER_FILE
from megaunigame.models.bagel.keys import TABLES
from megaunigame.models.bagel.language_model import DRAWING
from megaunigame.models.weights.renamed import RenamedWeights

PARTS = {
    DRAWING: "second set of weights in the layers: its language model has no layers of the kind Qwen2MoTDecoderLayer",
    "lm_head.": "head of its own: in a BAGEL head and embedding are two matrices (tie_word_embeddings=false)",
    "vit_model.": "vision tower, as a training with visual_und=False leaves it",
    "connector.": "connector of the vision tower, as a training with visual_und=False leaves it",
    "vae2llm.": "layers that read and draw latents, as a training with visual_gen=False leaves it",
}
"""What the name of some parameter has -> what a folder without any such lacks."""
PATCHES = "vit_model.vision_model.embeddings.patch_embedding.weight"
LATENTS = "vae2llm.weight"


def check_stored(config: BagelConfig, weights: RenamedWeights, frozen: RenamedWeights, path: str) -> None:
    """Raises ModelError, naming the part or the setting, for weights of another layout. `frozen`: the autoencoder's."""
    names = weights.names()
    for part, lack in PARTS.items():
        if not any(part in name for name in names):
            raise ModelError(
                f"The weights in {path} have no {lack} (no key with {part.strip('.')!r}). Give weights of a whole BAGEL, such "
                "as ema.safetensors of BAGEL-7B-MoT."
            )
    if not frozen.names():
        raise ModelError(
            f"{path} has the weights of a language model, and no autoencoder. Copy {AUTOENCODER_FILE} of BAGEL-7B-MoT there."
        )
    vae = config.vae
    levels = "vae_config.multipliers", len(vae["multipliers"])
    check_latents(frozen, "", VQGAN_LEVELS, ("vae_config.channels", vae["channels"]), levels, path)
    _check_edges(config, weights, path)
    for key, setting in TABLES.items():
        if key in weights.files.index:
            places, edge = weights.files.shape(key)[:1].numel(), getattr(config, setting)
            if places != edge**2:
                raise ModelError(
                    f"{key} in {path} has {places} places, and {setting}={edge} means {edge**2}. Write "
                    f"{setting}={isqrt(places)} into config.json. A folder with llm_config.json has the numbers of the "
                    "release: put everything into config.json (docs/models/bagel.md), and take llm_config.json away."
                )


def _check_edges(config: BagelConfig, weights: RenamedWeights, path: str) -> None:
    """Raises ModelError for patches of another size, of seen pictures and of latents."""
    channels, patch, seen = config.vae["channels"], config.latent_patch_size, config.vision.patch_size
    widths = {name: weights.shape(name)[1:].numel() for name in (LATENTS, PATCHES) if name in weights.names()}
    if (numbers := widths.get(LATENTS, config.latent_width)) != config.latent_width:
        raise ModelError(
            f"latent_patch_size={patch} and vae_config.channels={channels} mean latent tokens of {config.latent_width} "
            f"numbers, and {LATENTS} in {path} reads {numbers}. Write latent_patch_size={isqrt(numbers // channels)}, or take "
            "another autoencoder."
        )
    if (numbers := widths.get(PATCHES, 3 * seen**2)) != 3 * seen**2:
        raise ModelError(
            f"vision_config.patch_size={seen} means patches of {3 * seen**2} numbers, and {PATCHES} in {path} reads {numbers}. "
            f"Write patch_size={isqrt(numbers // 3)}."
        )
