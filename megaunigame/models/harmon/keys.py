"""Names in checkpoints. Ours are the official ones: `llm.`, `mar.`, `proj_in.`, `proj_out.`; the autoencoder's, published
alone, are under `vae.`. Input and output embedding are one matrix, `llm.lm_head.weight`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import Tensor

from megaunigame.models.base import Weights
from megaunigame.models.weights.renamed import KeyTable

AUTOENCODER = "vae."
HEAD, EMBEDDING = "llm.lm_head.weight", "llm.model.embed_tokens.weight"
UNUSED = re.compile(r".*rotary_emb\.inv_freq|mar\.class_emb\.weight|vae\.loss\..*")
"""In checkpoints, but not used for any output: MAR's classes among them."""
OURS = re.compile(
    r"llm\.lm_head\.\w+|llm\.model\.(layers\.\d+|norm)\..+|proj_(in|out)\.[02]\.(weight|bias)|"
    r"mar\.(fake_latent|mask_token|(encoder|decoder|diffusion)_pos_embed_learned|z_proj(_ln)?\..+|decoder_embed\..+|"
    r"(encoder|decoder)_(norm|blocks\.\d+)\..+|diffloss\.net\..+)|"
    r"vae\.((encoder|decoder)\..+|(post_)?quant_conv\..+)"
)


def translate(key: str) -> str | None:
    """Stored key -> name of our parameter, or None when we know no such key."""
    if key == EMBEDDING:  # the same matrix; transformers stores it under one of its two names
        return HEAD
    return key if OURS.fullmatch(key) else None


KEYS = KeyTable(
    family="Harmon",
    translate=translate,
    unused=UNUSED,
    frozen=AUTOENCODER,
    expected="official keys (llm., mar., proj_in., proj_out.) and those of the autoencoder (vae.)",
    fused="",
)


def official_weights(model: Weights) -> Iterator[tuple[str, Tensor]]:
    """Weights under the keys of a release, one at a time: the shared matrix under both names, and no autoencoder."""
    for name in sorted(model.names()):
        yield name, model.read(name)
        if name == HEAD:
            yield EMBEDDING, model.read(name).clone()
