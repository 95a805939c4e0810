"""Names in Janus checkpoints -> names of our parameters.

Two layouts exist: the official release (`vision_model.vision_tower.blocks.0.attn.qkv.weight`) and Hugging Face's, which our
modules have (`model.vision_model.encoder.layers.0.self_attn.q_proj.weight`). They never overlap, so one table is enough.
"""

from __future__ import annotations

import re

from megaunigame.models.weights.renamed import KeyTable

IMAGE_TOKENIZER = "model.vqmodel."

UNUSED = re.compile(
    r"vision_model\.vision_tower\.attn_pool\..*|.*quantize\.codebook_used|.*rotary_emb\.inv_freq|.*embeddings\.position_ids"
)
"""In checkpoints, but not used for any output."""

TOWER = r"vision_model\.vision_tower\."
LAYER = "model.vision_model.encoder.layers."
OFFICIAL: list[tuple[str, str]] = [
    (TOWER + r"patch_embed\.proj\.(\w+)", r"model.vision_model.embeddings.patch_embedding.\1"),
    (TOWER + r"pos_embed", "model.vision_model.embeddings.position_embedding.weight"),
    (TOWER + r"blocks\.(\d+)\.norm([12])\.(\w+)", LAYER + r"\1.layer_norm\2.\3"),
    (TOWER + r"blocks\.(\d+)\.attn\.qkv\.(\w+)", LAYER + r"\1.self_attn.qkv.\2"),
    (TOWER + r"blocks\.(\d+)\.attn\.proj\.(\w+)", LAYER + r"\1.self_attn.projection_layer.\2"),
    (TOWER + r"blocks\.(\d+)\.mlp\.(fc[12])\.(\w+)", LAYER + r"\1.mlp.\2.\3"),
    (TOWER + r"norm\.(\w+)", r"model.vision_model.post_layernorm.\1"),
    (r"gen_embed\.weight", "model.generation_embeddings.weight"),
    (r"gen_head\.output_mlp_projector\.(\w+)", r"model.generation_head.proj_out.\1"),
    (r"gen_head\.vision_head\.(\w+)", r"model.generation_head.vision_head.\1"),
    (r"language_model\.lm_head\.weight", "lm_head.weight"),
    (r"language_model\.model\.(.+)", r"model.language_model.\1"),
]
OFFICIAL_TOKENIZER: list[tuple[str, str]] = [
    (r"encoder\.conv_blocks\.(\d+)\.(res|attn)\.(\d+)\.(.+)", r"encoder.down.\1.\2.\3.\4"),
    (r"encoder\.conv_blocks\.(\d+)\.(downsample.+)", r"encoder.down.\1.\2"),
    (r"decoder\.conv_blocks\.(\d+)\.(res|attn)\.(\d+)\.(.+)", r"decoder.up.\1.\2.\3.\4"),
    (r"decoder\.conv_blocks\.(\d+)\.(upsample.+)", r"decoder.up.\1.\2"),
    (r"(encoder|decoder)\.mid\.0\.(.+)", r"\1.mid.block_1.\2"),
    (r"(encoder|decoder)\.mid\.1\.(.+)", r"\1.mid.attn_1.\2"),
    (r"(encoder|decoder)\.mid\.2\.(.+)", r"\1.mid.block_2.\2"),
    (r"((?:encoder|decoder)\.(?:conv_in|conv_out|norm_out)\..+)", r"\1"),
    (r"(quantize\.embedding\.weight|(?:post_)?quant_conv\.\w+)", r"\1"),
]
PROJECTOR = re.compile(r"(gen_)?aligner\.layers\.(\d+)\.(\w+)")


def translate(key: str) -> str | None:
    """Stored key -> name of our parameter (still fused: `self_attn.qkv`), or None when we know no such key."""
    if key.startswith(("model.", "lm_head.")):
        return key
    # The image tokenizer is also released alone, without its prefix.
    name = _first_match(OFFICIAL_TOKENIZER, key.removeprefix("gen_vision_model."))
    if name is not None:
        return IMAGE_TOKENIZER + name.replace(".res.", ".block.")
    projector = PROJECTOR.fullmatch(key)
    if projector:
        # Activations sit between the linear layers of the official Sequential: linear layer k is element 2k.
        generation, element, kind = projector.groups()
        owner = "model.generation_aligner" if generation else "model.aligner"
        linear = int(element) // 2
        return f"{owner}.fc1.{kind}" if linear == 0 else f"{owner}.hidden_layers.{linear - 1}.{kind}"
    return _first_match(OFFICIAL, key)


def _first_match(table: list[tuple[str, str]], key: str) -> str | None:
    for pattern, name in table:
        match = re.fullmatch(pattern, key)
        if match:
            return match.expand(name)
    return None


KEYS = KeyTable(
    family="Janus",
    translate=translate,
    unused=UNUSED,
    frozen=IMAGE_TOKENIZER,
    expected="official keys (vision_model.vision_tower., language_model., gen_vision_model.) or "
    "Hugging Face ones (model.vision_model., model.language_model., model.vqmodel.)",
    squeezed=("pos_embed",),
)
