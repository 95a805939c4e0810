"""The published size of Emu3 (arXiv 2409.18869) as a shape, and the tiny one of the project's own scenes.

Numbers of the released config.json of the language model and of the vision tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from megaunigame.models.emu3.conversation import SYSTEM_PROMPT
from megaunigame.models.emu3.folder import config_for, train_tokenizer, write_folder
from megaunigame.models.shapes import read_shape
from megaunigame.models.text.small_tokenizer import STAND_IN_TEXT, STAND_IN_VOCABULARY

TINY = Path(__file__).with_name("tiny.json")
"""64 x 64 pixels, 8 x 8 codes out of 256, one frame in time; the language model is as large as the tiny Janus's."""
TINY_VOCABULARY, TINY_IMAGE_SIZE = 707, 64
IMAGE_SIZE = 720
EMU3_8B: dict[str, Any] = {
    "text_config": {
        "vocab_size": 184622,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 9216,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "attention_dropout": 0.1,
    },
    "vq_config": {
        "codebook_size": 32768,
        "embed_dim": 4,
        "latent_channels": 4,
        "base_channels": 256,
        "channel_multiplier": [1, 2, 2, 4],
        "num_res_blocks": 2,
        "attn_resolutions": [3],
        "hidden_size": 1024,
        "temporal_downsample_factor": 4,
    },
}
"""8,762,751,807 parameters, the vision tokenizer included; a code covers 8 x 8 pixels."""


def write(shape: dict[str, Any], image_size: int, system_prompt: str, folder: Path) -> None:
    """Write a folder of this shape without weights."""
    tokenizer = train_tokenizer(STAND_IN_TEXT, STAND_IN_VOCABULARY, shape["vq_config"]["codebook_size"])
    write_folder(folder, config_for(tokenizer, shape), None, tokenizer, image_size=image_size, system_prompt=system_prompt)


def write_tiny(folder: Path) -> None:
    """Write a folder of `TINY` without weights."""
    write(read_shape(TINY, {"text_config": {"vocab_size": TINY_VOCABULARY}}), TINY_IMAGE_SIZE, "", folder)


SIZES: dict[str, Callable[[Path], None]] = {"tiny": write_tiny, "8b": partial(write, EMU3_8B, IMAGE_SIZE, SYSTEM_PROMPT)}
"""Name -> writes a folder without weights."""
