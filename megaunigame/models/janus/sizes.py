"""Published sizes of Janus-Pro (arXiv 2501.17811) as configurations, and the tiny one that ships with the project.

Numbers of the released config.json files; the parts that those name without sizes are in `configuration.TOWERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from transformers import JanusConfig, PreTrainedTokenizerFast

from megaunigame.models.janus.configuration import TOWERS
from megaunigame.models.janus.conversation import IMAGE
from megaunigame.models.janus.folder import tiny_config, train_tokenizer, write_small_files
from megaunigame.models.named_sizes import named
from megaunigame.models.text.small_tokenizer import STAND_IN_TEXT, STAND_IN_VOCABULARY

TOWER = "siglip_large_patch16_384"
IMAGE_SIZE = 384
VOCABULARY, CODES, CODE_WIDTH = 102400, 16384, 8
TINY_VOCABULARY = 512


def janus_pro(tokenizer: PreTrainedTokenizerFast, *, width: int, intermediate: int, layers: int, heads: int) -> JanusConfig:
    """A Janus-Pro: SigLIP-L at 384 pixels, VQ-16, a Llama without grouped keys."""
    tower = TOWERS[TOWER]
    return JanusConfig(
        vision_config={
            **tower,
            "image_size": IMAGE_SIZE,
            "projection_dim": width,
            "num_image_tokens": (IMAGE_SIZE // tower["patch_size"]) ** 2,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": VOCABULARY,
            "hidden_size": width,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": 16384,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": None,
        },
        vq_config={
            "num_embeddings": CODES,
            "embed_dim": CODE_WIDTH,
            "projection_dim": width,
            "image_token_embed_dim": width,
        },
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        tie_word_embeddings=False,
    )


def janus_pro_1b(tokenizer: PreTrainedTokenizerFast) -> JanusConfig:
    """2,076,636,811 parameters, the image tokenizer included."""
    return janus_pro(tokenizer, width=2048, intermediate=5632, layers=24, heads=16)


def janus_pro_7b(tokenizer: PreTrainedTokenizerFast) -> JanusConfig:
    """7,407,773,323 parameters, the image tokenizer included."""
    return janus_pro(tokenizer, width=4096, intermediate=11008, layers=30, heads=32)


def tiny(tokenizer: PreTrainedTokenizerFast) -> JanusConfig:
    """The shape of the weights in megaunigame/tiny_world: 64 x 64 pixels, 64 visual tokens, 64 codes out of 256."""
    config = tiny_config(
        tokenizer,
        image_size=64,
        patch_size=8,
        vision_width=128,
        vision_layers=4,
        vision_heads=4,
        vision_mlp_ratio=3.0,
        width=192,
        layers=6,
        heads=6,
        intermediate=512,
        max_positions=512,
    )
    config.text_config.vocab_size = TINY_VOCABULARY
    return config


SIZES: dict[str, Callable[[PreTrainedTokenizerFast], JanusConfig]] = {"tiny": tiny, "1b": janus_pro_1b, "7b": janus_pro_7b}


def write_size(size: str, folder: Path) -> None:
    """Write a folder of this size without weights. Raises ModelError for another size."""
    config = named(SIZES, size, "janus")
    tokenizer = train_tokenizer(STAND_IN_TEXT, STAND_IN_VOCABULARY)
    write_small_files(folder, config(tokenizer), tokenizer)
