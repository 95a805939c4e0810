"""Names in Emu3.5 checkpoints, which are the names of our parameters; those of the vision tokenizer get a prefix."""

from __future__ import annotations

import re

from megaunigame.models.weights.renamed import KeyTable

VISION_TOKENIZER = "vision_tokenizer."
UNUSED = re.compile(r".*rotary_emb\.inv_freq")
"""In checkpoints, but not used for any output."""
OF_LANGUAGE_MODEL = ("model.embed_tokens.", "model.layers.", "model.norm.", "lm_head.")
OF_VISION_TOKENIZER = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")


def translate(key: str) -> str | None:
    """Stored key -> name of our parameter, or None when we know no such key."""
    if key.startswith(OF_LANGUAGE_MODEL):
        return key
    return VISION_TOKENIZER + key if key.startswith(OF_VISION_TOKENIZER) else None


KEYS = KeyTable(
    family="Emu3.5",
    translate=translate,
    unused=UNUSED,
    frozen=VISION_TOKENIZER,
    expected="official keys: model.embed_tokens., model.layers., model.norm., lm_head., and encoder., decoder., quantize., "
    "quant_conv., post_quant_conv. in the folder of the vision tokenizer",
)
