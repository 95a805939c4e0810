"""Published sizes of Janus-Pro (arXiv 2501.17811) as shapes, and the tiny one that ships with the project.

Numbers of the released config.json files; sizes they do not give are in `configuration.TOWERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from megaunigame.models.janus.configuration import TOWERS
from megaunigame.models.janus.folder import config_for, train_tokenizer, write_folder
from megaunigame.models.shapes import read_shape
from megaunigame.models.text.small_tokenizer import STAND_IN_TEXT, STAND_IN_VOCABULARY

TOWER = "siglip_large_patch16_384"
IMAGE_SIZE = 384
VOCABULARY, CODES, CODE_WIDTH = 102400, 16384, 8
TINY = Path(__file__).with_name("tiny.json")
"""The shape of the weights in megaunigame/tiny_world: 64 x 64 pixels, 64 visual tokens, 64 codes out of 256."""
TINY_VOCABULARY = 512


def janus_pro(*, width: int, intermediate: int, layers: int, heads: int) -> dict[str, Any]:
    """A Janus-Pro: SigLIP-L at 384 pixels, VQ-16, a Llama without grouped keys."""
    tower = TOWERS[TOWER]
    tokens = (IMAGE_SIZE // tower["patch_size"]) ** 2
    return {
        "vision_config": {**tower, "image_size": IMAGE_SIZE, "projection_dim": width, "num_image_tokens": tokens},
        "text_config": {
            "vocab_size": VOCABULARY,
            "hidden_size": width,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": 16384,
        },
        "vq_config": {
            "num_embeddings": CODES,
            "embed_dim": CODE_WIDTH,
            "projection_dim": width,
            "image_token_embed_dim": width,
        },
    }


def write(shape: dict[str, Any], folder: Path) -> None:
    """Write a folder of this shape without weights."""
    tokenizer = train_tokenizer(STAND_IN_TEXT, STAND_IN_VOCABULARY)
    write_folder(folder, config_for(tokenizer, shape), None, tokenizer)


SIZES: dict[str, Callable[[Path], None]] = {
    "tiny": lambda folder: write(read_shape(TINY, {"text_config": {"vocab_size": TINY_VOCABULARY}}), folder),
    "1b": partial(write, janus_pro(width=2048, intermediate=5632, layers=24, heads=16)),
    "7b": partial(write, janus_pro(width=4096, intermediate=11008, layers=30, heads=32)),
}
"""Name -> writes a folder without weights; 1b has 2,076,636,811 parameters and 7b 7,407,773,323, image tokenizer included."""
