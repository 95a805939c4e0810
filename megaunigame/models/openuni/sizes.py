"""Published sizes as configurations, and an unpublished one of 38 billion parameters.

Parts: InternVL3 (arXiv 2504.10479), SANA (2410.10629) and SANA 1.5 (2501.18427), DC-AE (2410.10733). The connectors of
OpenUni-B and -L are the official ones; the 38-billion model has that of OpenUni-L between two linear layers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from transformers import InternVLConfig

from megaunigame.models.openuni.configuration import OpenUniConfig
from megaunigame.models.openuni.conversation import IMAGE
from megaunigame.models.openuni.folder import config_for, train_tokenizer, write_folder
from megaunigame.models.shapes import read_shape
from megaunigame.models.text.small_tokenizer import STAND_IN_TEXT, STAND_IN_VOCABULARY

VOCABULARY = 151674
IMAGE_TOKEN = 151667
TURN_END_TOKEN = 151645
TINY = Path(__file__).with_name("tiny.json")
"""The model of the project's own scenes: 64 x 64 pixels, 64 visual tokens, 64 queries, latents of 8 channels on 8 x 8."""
TINY_VOCABULARY = 443

INTERNVIT_300M = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "attention_bias": True,
}
INTERNVIT_6B = {
    "hidden_size": 3200,
    "num_hidden_layers": 45,
    "num_attention_heads": 25,
    "intermediate_size": 12800,
    "attention_bias": False,
    "use_qk_norm": True,
    "norm_type": "rms_norm",
}
CONNECTOR_B = {"hidden_size": 896, "intermediate_size": 3072, "num_hidden_layers": 6, "num_attention_heads": 14}
CONNECTOR_L = {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 6, "num_attention_heads": 24}


def internvl3(vision: dict[str, Any], width: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> InternVLConfig:
    """An InternVL3: pictures of 448 pixels, 256 visual tokens."""
    return InternVLConfig(
        vision_config=vision,
        text_config={
            "model_type": "qwen2",
            "vocab_size": VOCABULARY,
            "hidden_size": width,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
            "bos_token_id": None,
            "eos_token_id": TURN_END_TOKEN,
            "pad_token_id": None,
        },
        image_token_id=IMAGE_TOKEN,
        image_seq_length=256,
    )


def sana(layers: int, heads: int, cross_heads: int, cross_head_width: int, image_size: int, **more: Any) -> dict[str, Any]:
    """A SANA transformer on latents of DC-AE: heads of 32, one latent cell per token."""
    width = 32 * heads
    return {
        "in_channels": 32,
        "out_channels": 32,
        "num_attention_heads": heads,
        "attention_head_dim": 32,
        "num_layers": layers,
        "num_cross_attention_heads": cross_heads,
        "cross_attention_head_dim": cross_head_width,
        "cross_attention_dim": width,
        "caption_channels": 2304,
        "sample_size": image_size // 32,
        **more,
    }


def dc_ae() -> dict[str, Any]:
    """The autoencoder f32c32 of SANA 1.1: 32 times smaller along each edge, 32 channels."""
    blocks = ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3
    scales: list[list[int]] = [[], [], [], [5], [5], [5]]
    widths = [128, 256, 512, 512, 1024, 1024]
    return {
        "latent_channels": 32,
        "attention_head_dim": 32,
        "encoder_block_types": blocks,
        "decoder_block_types": blocks,
        "encoder_block_out_channels": widths,
        "decoder_block_out_channels": widths,
        "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
        "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
        "encoder_qkv_multiscales": scales,
        "decoder_qkv_multiscales": scales,
        "downsample_block_type": "conv",
        "upsample_block_type": "interpolate",
        "scaling_factor": 0.41407,
    }


def openuni_b(image_size: int = 512) -> OpenUniConfig:
    """InternVL3-1B and SANA-0.6B."""
    internvl = internvl3(INTERNVIT_300M, width=896, intermediate=4864, layers=24, heads=14, kv_heads=2)
    return OpenUniConfig(internvl, CONNECTOR_B, sana(28, 36, 16, 72, image_size), dc_ae(), image_size)


def openuni_l(image_size: int = 512) -> OpenUniConfig:
    """InternVL3-2B and SANA-1.6B; called 3.6B where the vision tower is not counted."""
    internvl = internvl3(INTERNVIT_300M, width=1536, intermediate=8960, layers=28, heads=12, kv_heads=2)
    return OpenUniConfig(internvl, CONNECTOR_L, sana(20, 70, 20, 112, image_size), dc_ae(), image_size)


def openuni_38b(image_size: int = 512) -> OpenUniConfig:
    """InternVL3-38B and SANA1.5-4.8B."""
    internvl = internvl3(INTERNVIT_6B, width=5120, intermediate=27648, layers=64, heads=40, kv_heads=8)
    transformer = sana(60, 70, 20, 112, image_size, qk_norm="rms_norm_across_heads")
    return OpenUniConfig(internvl, CONNECTOR_L, transformer, dc_ae(), image_size)


SIZES = {"b": openuni_b, "l": openuni_l, "38b": openuni_38b}


def write_published(size: str, folder: Path) -> None:
    """Write a folder of one of `SIZES` without weights; its tokenizer is a stand-in."""
    tokenizer, config = train_tokenizer(STAND_IN_TEXT, STAND_IN_VOCABULARY), SIZES[size]()
    config.internvl.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE)
    config.internvl.text_config.eos_token_id = tokenizer.eos_token_id
    write_folder(folder, config, None, tokenizer)


def write_tiny(folder: Path) -> None:
    """Write a folder of `TINY` without weights; its tokenizer is a stand-in."""
    tokenizer = train_tokenizer(STAND_IN_TEXT, STAND_IN_VOCABULARY)
    shape = read_shape(TINY, {"internvl": {"text_config": {"vocab_size": TINY_VOCABULARY}}})
    write_folder(folder, config_for(tokenizer, shape), None, tokenizer)


WRITERS: dict[str, Callable[[Path], None]] = {"tiny": write_tiny, **{size: partial(write_published, size) for size in SIZES}}
"""Name -> writes a folder without weights."""
