"""Names in Show-o checkpoints: ours are the official ones, of the language model (`showo.model.`, `showo.lm_head.`) and of the
vision tokenizer, which is published separately (`encoder.`, `decoder.`, `quantize.`). They never overlap."""

from __future__ import annotations

import re

from megaunigame.errors import ModelError
from megaunigame.models.weights.renamed import KeyTable

LANGUAGE_MODEL, VISION_TOKENIZER = ("showo.model.", "showo.lm_head."), "vq_model."
OFFICIAL_TOKENIZER = ("encoder.", "decoder.", "quantize.")
PROJECTOR = "mm_projector."
UNUSED = re.compile(r"showo\..*rotary_emb\.inv_freq")
"""In checkpoints, but not used for any output."""


def translate(key: str) -> str | None:
    """Stored key -> name of our parameter, or None when we know no such key.

    Raises ModelError for a key of the variant that sees pictures with CLIP.
    """
    if key.startswith(PROJECTOR):
        raise ModelError(
            f"{key} belongs to the variant of Show-o that sees pictures with CLIP-ViT (w_clip_vit), which has no code here. "
            "Give a release that sees them as codes, such as show-o-512x512."
        )
    if key.startswith(LANGUAGE_MODEL):
        return key
    return VISION_TOKENIZER + key if key.startswith(OFFICIAL_TOKENIZER) else None


KEYS = KeyTable(
    family="Show-o",
    translate=translate,
    unused=UNUSED,
    frozen=VISION_TOKENIZER,
    expected="official keys (showo.model., showo.lm_head., and encoder., decoder., quantize. of the vision tokenizer)",
)
