"""Published sizes, an unpublished one of 38 billion parameters, and the tiny one of the project's own scenes: shapes in JSON.

Parts: InternVL3 (arXiv 2504.10479), SANA (2410.10629) and SANA 1.5 (2501.18427), DC-AE f32c32 (2410.10733).

    b     InternVL3-1B,  SANA-0.6B      connector of OpenUni-B
    l     InternVL3-2B,  SANA-1.6B      connector of OpenUni-L; called 3.6B where the vision tower is not counted
    38b   InternVL3-38B, SANA1.5-4.8B   connector of OpenUni-L between two linear layers
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from transformers import InternVLConfig

from megaunigame.models.diffusion.flow import Flow
from megaunigame.models.openuni.configuration import OpenUniConfig
from megaunigame.models.openuni.conversation import IMAGE
from megaunigame.models.openuni.folder import config_for, train_tokenizer, write_folder
from megaunigame.models.shapes import read_shape
from megaunigame.models.text.small_tokenizer import STAND_IN_TEXT, STAND_IN_VOCABULARY

TINY = Path(__file__).with_name("tiny.json")
"""64 x 64 pixels, 64 visual tokens, 64 queries, latents of 8 channels on 8 x 8."""
TINY_VOCABULARY = 443


def published(size: str, image_size: int = 512) -> OpenUniConfig:
    """The configuration of a size, with the token ids of InternVL3's tokenizer."""
    changes = {"image_size": image_size, "transformer": {"sample_size": image_size // 32}}
    shape = read_shape(TINY.with_name(f"{size}.json"), changes)
    return OpenUniConfig(**{**shape, "internvl": InternVLConfig(**shape["internvl"]), "flow": Flow(**shape["flow"])})


SIZES: dict[str, Callable[..., OpenUniConfig]] = {size: partial(published, size) for size in ("b", "l", "38b")}


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
