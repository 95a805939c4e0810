"""Names in checkpoints -> names of our parameters, and back to the official ones.

Ours are those of transformers' InternVLForConditionalGeneration, plus `meta_queries.weight`, `connector.`, `projector.`,
`transformer.` and `vae.`. Also read: the official repository's (table below), InternVL's (the same without `lmm.`), and the
older names of transformers (`vision_tower.` without `model.`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from megaunigame.models.base import Weights
from megaunigame.models.weights.renamed import KeyTable

AUTOENCODER = "vae."
UNUSED = re.compile(r".*rotary_emb\.inv_freq|.*position_ids")
"""In checkpoints, but not used for any output."""

THEIR_LAYER, OUR_LAYER = "lmm.vision_model.encoder.layers.#.", "model.vision_tower.encoder.layer.#."
OFFICIAL: list[tuple[str, str]] = [
    ("lmm.vision_model.embeddings.class_embedding", "model.vision_tower.embeddings.cls_token"),
    ("lmm.vision_model.embeddings.patch_embedding.*", "model.vision_tower.embeddings.patch_embeddings.projection.*"),
    ("lmm.vision_model.embeddings.position_embedding", "model.vision_tower.embeddings.position_embeddings"),
    (THEIR_LAYER + "attn.qkv.*", OUR_LAYER + "attention.qkv.*"),
    (THEIR_LAYER + "attn.proj.*", OUR_LAYER + "attention.projection_layer.*"),
    (THEIR_LAYER + "attn.q_norm.weight", OUR_LAYER + "attention.q_norm.weight"),
    (THEIR_LAYER + "attn.k_norm.weight", OUR_LAYER + "attention.k_norm.weight"),
    (THEIR_LAYER + "ls1", OUR_LAYER + "lambda_1"),
    (THEIR_LAYER + "ls2", OUR_LAYER + "lambda_2"),
    (THEIR_LAYER + "norm1.*", OUR_LAYER + "layernorm_before.*"),
    (THEIR_LAYER + "norm2.*", OUR_LAYER + "layernorm_after.*"),
    (THEIR_LAYER + "mlp.*", OUR_LAYER + "mlp.*"),
    ("lmm.mlp1.0.*", "model.multi_modal_projector.layer_norm.*"),
    ("lmm.mlp1.1.*", "model.multi_modal_projector.linear_1.*"),
    ("lmm.mlp1.3.*", "model.multi_modal_projector.linear_2.*"),
    ("lmm.language_model.lm_head.weight", "lm_head.weight"),
    ("lmm.language_model.model.*", "model.language_model.*"),
    ("meta_queries", "meta_queries.weight"),
    # A connector of another width than the language model has a linear layer on either side.
    ("projector.0.*", "connector_input.*"),
    ("projector.1.*", "projector.*"),
]
"""`#` stands for a number, `*` for the rest of a name."""
WITHOUT_PREFIX = {
    "lmm.": ("vision_model.", "mlp1.", "language_model."),
    "model.": ("vision_tower.", "multi_modal_projector."),
}
OURS = (
    *("model.vision_tower.", "model.multi_modal_projector.", "model.language_model.", "lm_head.", "meta_queries."),
    *("connector.", "connector_input.", "projector.", "transformer.", AUTOENCODER),
)


def translate(key: str) -> str | None:
    """Stored key -> name of our parameter (still fused: `attention.qkv`), or None when we know no such key."""
    for prefix, beginnings in WITHOUT_PREFIX.items():
        if key.startswith(beginnings):
            key = prefix + key
    for theirs, ours in OFFICIAL:
        name = _renamed(key, theirs, ours)
        if name is not None:
            return name
    return key if key.startswith(OURS) else None


def _renamed(name: str, old: str, new: str) -> str | None:
    """`name` in the pattern `new` when it has the pattern `old`."""
    match = re.fullmatch(re.escape(old).replace(r"\#", r"(\d+)").replace(r"\*", "(.+)"), name)
    if match is None:
        return None
    parts = iter(match.groups())
    return re.sub("[#*]", lambda _: next(parts), new)


KEYS = KeyTable(
    family="OpenUni",
    translate=translate,
    unused=UNUSED,
    frozen=AUTOENCODER,
    expected="official keys (lmm.vision_model., lmm.language_model., connector., transformer., vae.) or "
    "ours (model.vision_tower., model.language_model., ...)",
)


def official_weights(model: Weights, frozen: Weights) -> Iterator[tuple[str, Tensor]]:
    """The same weights under the keys of the official repository, one at a time. `frozen` has names under `vae.`."""
    names = model.names()
    two_projectors = any(name.startswith("connector_input.") for name in names)
    table = [pair for pair in OFFICIAL if two_projectors or not pair[0].startswith("projector.")]
    for name in sorted(names):
        fused = name.replace(".attention.q_proj.", ".attention.qkv.")
        if fused != name:
            parts = [model.read(name.replace(".q_proj.", f".{letter}_proj.")) for letter in "qkv"]
            yield _official(fused, table), torch.cat(parts)
        elif not (".attention.k_proj." in name or ".attention.v_proj." in name):
            yield _official(name, table), model.read(name)
    for name in sorted(frozen.names()):
        yield name, frozen.read(name)


def _official(name: str, table: list[tuple[str, str]]) -> str:
    keys = (_renamed(name, ours, theirs) for theirs, ours in table)
    return next((key for key in keys if key is not None), name)
