"""Names in checkpoints -> names of our parameters, and back to the official ones.

Ours are the official ones without `language_model.` before `model.` and `lm_head.`, and with `vae.` before those of the
autoencoder, which is published in a file of its own. Position tables are in checkpoints, but computed here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import Tensor

from megaunigame.models.bagel.configuration import MOST_LAYERS, BagelConfig
from megaunigame.models.bagel.language_model import DRAWING
from megaunigame.models.bagel.tables import whole_table
from megaunigame.models.base import Weights
from megaunigame.models.weights.renamed import KeyTable

AUTOENCODER = "vae."
LANGUAGE_MODEL = "language_model."
TABLES = {"vit_pos_embed.pos_embed": "vit_max_num_patch_per_side", "latent_pos_embed.pos_embed": "max_latent_size"}
"""Official key of a position table -> the setting that is its number of places along an edge."""
UNUSED = re.compile("|".join(map(re.escape, TABLES)) + r"|.*rotary_emb\.inv_freq|.*\.position_ids")
OF_LANGUAGE = ("model.layers.", "model.embed_tokens.", "model.norm.", f"model.norm{DRAWING}.", "lm_head.")
OTHERS = (
    *("vit_model.vision_model.embeddings.", "vit_model.vision_model.encoder.layers.", "vit_model.vision_model.post_layernorm."),
    *("connector.fc1.", "connector.fc2.", "time_embedder.mlp.", "vae2llm.", "llm2vae."),
)
OF_AUTOENCODER = tuple(
    f"{part}.{layer}."
    for part, scales in (("encoder", "down"), ("decoder", "up"))
    for layer in ("conv_in", scales, "mid", "norm_out", "conv_out")
)
OF_ATTENTION = tuple(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"))
OF_LAYER = (*OF_ATTENTION, "mlp", "input_layernorm", "post_attention_layernorm")
"""Modules of a layer that it has twice."""
AFTER_KEYS = ("self_attn.q_proj", "self_attn.q_norm", "self_attn.o_proj", "mlp", "post_attention_layernorm")
"""Those whose result other elements of a row do not read in the same layer."""


def of_expert(kind: str) -> tuple[str, ...]:
    """Beginnings of the names of the layers' parameters of one set of weights; `kind`: its suffix."""
    return tuple(f"model.layers.{layer}.{module}{kind}." for layer in range(MOST_LAYERS) for module in OF_LAYER)


def translate(key: str) -> str | None:
    """Stored key -> name of our parameter, or None when we know no such key."""
    name = key.removeprefix(LANGUAGE_MODEL)
    if name.startswith(OF_LANGUAGE):
        return name
    if key.startswith(OTHERS):
        return key
    return AUTOENCODER + key.removeprefix(AUTOENCODER) if is_of_autoencoder(key) else None


def is_of_autoencoder(key: str) -> bool:
    """Whether a stored key is one of the autoencoder."""
    return key.removeprefix(AUTOENCODER).startswith(OF_AUTOENCODER)


def official(name: str) -> str:
    """Our name of a parameter -> its official key, in the file of its part."""
    return LANGUAGE_MODEL + name if name.startswith(OF_LANGUAGE) else name.removeprefix(AUTOENCODER)


KEYS = KeyTable(
    family="BAGEL",
    translate=translate,
    unused=UNUSED,
    frozen=AUTOENCODER,
    expected="official keys (language_model., vit_model., connector., time_embedder., vae2llm., llm2vae., and encoder., "
    "decoder. of the autoencoder) or ours (model., lm_head., vae., ...)",
)


def official_weights(config: BagelConfig, model: Weights) -> Iterator[tuple[str, Tensor]]:
    """The weights under the keys of ema.safetensors, one at a time, the position tables included."""
    for name in sorted(model.names()):
        yield official(name), model.read(name)
    for key, setting in TABLES.items():
        yield key, whole_table(getattr(config, setting), config.width)


def official_autoencoder(frozen: Weights) -> Iterator[tuple[str, Tensor]]:
    """The autoencoder under the keys of ae.safetensors. `frozen` has names under `vae.`."""
    return ((official(name), frozen.read(name)) for name in sorted(frozen.names()))
