"""Names in Emu3 checkpoints -> names of our parameters.

Ours are those of transformers' Emu3ForConditionalGeneration. Also read: its older spelling (`text_model.model.`, `vqmodel.`),
and the official ones, of the language model (`model.layers.`) and of the vision tokenizer (`encoder.down.`), which is
published separately. They never overlap, so one table is enough.
"""

from __future__ import annotations

import re

from megaunigame.models.weights.renamed import KeyTable

LANGUAGE_MODEL, VISION_TOKENIZER = "model.text_model.", "model.vqmodel."
UNUSED = re.compile(r".*rotary_emb\.inv_freq")
"""In checkpoints, but not used for any output."""

OLDER = {"text_model.model.": LANGUAGE_MODEL, "text_model.lm_head.": "lm_head.", "vqmodel.": VISION_TOKENIZER}
OFFICIAL = ("model.embed_tokens.", "model.layers.", "model.norm.")
OFFICIAL_TOKENIZER = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "quantize.")
RENAMED_IN_TOKENIZER = [
    (r"^encoder\.down\.", "encoder.down_block.down."),
    (r"^decoder\.up\.", "decoder.up_block.up."),
    (r"\.mid\.", ".middle_block."),
    (r"\.attn\.(\d+)\.norm\.", r".attn_norms.\1."),
    (r"\.attn_1\.norm\.", ".attn_norm."),
    (r"(\.attn\.\d+|\.attn_1)\.([qkv])\.", r"\1.\2_proj."),
    (r"(\.attn\.\d+|\.attn_1)\.proj_out\.", r"\1.out_proj."),
]


def translate(key: str) -> str | None:
    """Stored key -> name of our parameter, or None when we know no such key."""
    if key.startswith((LANGUAGE_MODEL, VISION_TOKENIZER, "lm_head.")):
        return key
    if key.startswith(OFFICIAL):
        return LANGUAGE_MODEL + key.removeprefix("model.")
    if key.startswith(OFFICIAL_TOKENIZER):
        for pattern, name in RENAMED_IN_TOKENIZER:
            key = re.sub(pattern, name, key)
        return VISION_TOKENIZER + key
    return next((new + key.removeprefix(old) for old, new in OLDER.items() if key.startswith(old)), None)


KEYS = KeyTable(
    family="Emu3",
    translate=translate,
    unused=UNUSED,
    frozen=VISION_TOKENIZER,
    expected="official keys (model.layers., lm_head., encoder.down.) or Hugging Face ones (model.text_model., model.vqmodel.)",
    flattened=(".q.weight", ".k.weight", ".v.weight", ".proj_out.weight"),
)
