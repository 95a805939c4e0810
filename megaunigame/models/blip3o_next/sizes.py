"""The published size of BLIP3o-NEXT (arXiv 2510.15857), and the tiny one of the project's own scenes.

3b is Qwen3-1.7B with 65,541 more tokens, SANA1.5-1.6B, DC-AE f32c32 and TA-Tok. Numbers of the official code and of the parts
that it names; the released config.json was not at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from megaunigame.models.blip3o_next.configuration import RELEASED
from megaunigame.models.blip3o_next.conversation import SYSTEM_PROMPT
from megaunigame.models.blip3o_next.folder import config_for, train_tokenizer, write_folder
from megaunigame.models.shapes import read_shape
from megaunigame.models.text.small_tokenizer import STAND_IN_TEXT, STAND_IN_VOCABULARY

TINY = Path(__file__).with_name("tiny.json")
"""64 x 64 pixels, 8 x 8 codes out of 256, latents of 8 channels on 8 x 8."""
TINY_VOCABULARY = 704


def write(file: Path, changes: Mapping[str, Any], system_prompt: str, folder: Path) -> None:
    """Write a folder of the shape in `file` without weights."""
    shape = read_shape(file, changes)
    tokenizer = train_tokenizer(STAND_IN_TEXT, STAND_IN_VOCABULARY, shape["vq_config"]["codebook_size"])
    write_folder(folder, config_for(tokenizer, shape), None, tokenizer, system_prompt=system_prompt)


SIZES: dict[str, Callable[[Path], None]] = {
    "tiny": partial(write, TINY, {"text_config": {"vocab_size": TINY_VOCABULARY}}, ""),
    "3b": partial(write, RELEASED, {}, SYSTEM_PROMPT),
}
"""Name -> writes a folder without weights."""
