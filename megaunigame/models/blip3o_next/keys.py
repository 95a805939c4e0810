"""Names in BLIP3o-NEXT checkpoints, which are the names of our parameters and frozen modules."""

from __future__ import annotations

import re

from megaunigame.models.weights.renamed import KeyTable

AUTOENCODER, TOKENIZER = "model.sana_vae.", "model.vision_tower.vision_tower."
CAPTION = ("model.sana.caption_projection.", "model.sana.caption_norm.")
DIT = tuple(
    f"model.sana.{part}" for part in ("patch_embed.", "time_embed.", "transformer_blocks.", "proj_out.", "scale_shift_table")
)
TRAINED = ("model.embed_tokens.", "model.layers.", "model.norm.", "model.diffusion_connector.", *CAPTION, *DIT)
USED_BY_TOKENIZER = (
    *("encoder.embeddings.", "encoder.encoder.", "encode_task_layer.", "bottleneck.in_linear."),
    *("bottleneck.regularizer.embedding.", "bottleneck.regularizer.embedding_proj."),
)
UNUSED = re.compile(
    r"lm_head\.weight|.*rotary_emb\.inv_freq|.*position_ids|"
    rf"{re.escape(TOKENIZER)}(decoder|decode_task_layer|scale_layer|bottleneck\.out_linear|encoder\.head|encoder\.post_layernorm)\..*|"
    rf"{re.escape(TOKENIZER)}bottleneck\.regularizer\.stochastic_temperature_inv"
)
"""In checkpoints, but not used for any output. The head is the embedding, and its copy need not be stored."""


def translate(key: str) -> str | None:
    """Stored key -> name of our parameter, or None when we know no such key."""
    known = key.startswith((*TRAINED, AUTOENCODER, *(TOKENIZER + part for part in USED_BY_TOKENIZER)))
    return key if known else None


KEYS = KeyTable(
    family="BLIP3o-NEXT",
    translate=translate,
    unused=UNUSED,
    frozen=(AUTOENCODER, TOKENIZER),
    expected="official keys (model.embed_tokens., model.layers., model.sana., model.diffusion_connector., model.sana_vae., "
    "model.vision_tower.vision_tower.)",
)
