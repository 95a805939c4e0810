"""Names in Chameleon checkpoints -> names of our parameters.

Ours are those of transformers' ChameleonForConditionalGeneration, which keeps the released names in its image tokenizer. The
original `vqgan.ckpt` has them without prefix. The original language model is read under Hugging Face names too: `release.py`.
"""

from __future__ import annotations

import re

from megaunigame.models.weights.renamed import KeyTable

LANGUAGE_MODEL = ("model.embed_tokens.", "model.layers.", "model.norm.", "lm_head.")
IMAGE_TOKENIZER = "model.vqmodel."
OF_IMAGE_TOKENIZER = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "quantize.")
UNUSED = re.compile(r".*rotary_emb\.inv_freq|rope\.freqs|loss\..*")
"""In checkpoints, but not used for any output: `loss.` is what the image tokenizer was trained against."""


def translate(key: str) -> str | None:
    """Stored key -> name of our parameter, or None when we know no such key."""
    if key.startswith((*LANGUAGE_MODEL, IMAGE_TOKENIZER)):
        return key
    return IMAGE_TOKENIZER + key if key.startswith(OF_IMAGE_TOKENIZER) else None


KEYS = KeyTable(
    family="Chameleon",
    translate=translate,
    unused=UNUSED,
    frozen=IMAGE_TOKENIZER,
    expected="Hugging Face keys (model.layers., lm_head., model.vqmodel.) or those of the release (layers.0.attention.wq.)",
)
