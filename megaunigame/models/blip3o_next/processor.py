"""Neutral rows -> the tensors of BLIP3o-NEXT's two passes."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from megaunigame.errors import ModelError
from megaunigame.models.blip3o_next.configuration import Blip3oNextConfig, read_config
from megaunigame.models.blip3o_next.conversation import (
    BEGIN_OF_IMAGE,
    END_OF_IMAGE,
    SYSTEM_PROMPT,
    Blip3oNextFormat,
    code_token,
    scale_token,
)
from megaunigame.models.causal.token_format import CodeSquares
from megaunigame.models.text.processor import HALF, RowProcessor
from megaunigame.models.weights.settings_files import check_tokens, read_system_prompt, read_tokenizer

PLACEHOLDER = "<image>"
"""Added to the tokenizer by the official training, after all others; no row has it."""


class Blip3oNextProcessor(RowProcessor):
    """After the prompt of a generate row come all codes. Its loss counts them: to the sum over the codes comes their number
    times the mean over the latents.

    Sources go through the vision tokenizer, so preprocessor_config.json does not apply to them.
    """

    format: Blip3oNextFormat

    @classmethod
    def from_folder(cls, path: str | Path, *, max_length: int) -> Blip3oNextProcessor:
        """Read tokenizer and picture sizes of a model folder. Raises ModelError when a file or a token is missing, and when an
        id of a token is not the one in config.json."""
        folder = Path(path)
        tokenizer, config = read_tokenizer(folder), read_config(folder)
        size = config.text_config.vocab_size
        check_tokens(tokenizer, size + (tokenizer.get_vocab().get(PLACEHOLDER) == size), folder)
        vision = config.vq_config
        squares = CodeSquares(vision.codebook_size, vision.patch_size, vision.image_size, vision.image_size)
        conversation = Blip3oNextFormat(tokenizer, squares, read_system_prompt(folder, SYSTEM_PROMPT), str(folder))
        check_ids(tokenizer, config, folder)
        return cls(
            tokenizer,
            conversation,
            image_size=config.image_size,
            source_size=vision.image_size,
            after_prompt=conversation.grid.count,
            loss_positions=conversation.grid.count,
            max_length=max_length,
            mean=HALF,
            std=HALF,
        )


def token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The ids of tokens in config.json."""
    names = {
        "image_start_tag_id": BEGIN_OF_IMAGE,
        "image_end_tag_id": END_OF_IMAGE,
        "scale_start_token_id": scale_token(0),
        "image_start_token_id": code_token(0),
    }
    return {key: tokenizer.convert_tokens_to_ids(name) for key, name in names.items()}


def check_ids(tokenizer: PreTrainedTokenizerFast, config: Blip3oNextConfig, folder: Path) -> None:
    """Raises ModelError unless the tokenizer has the ids of the configuration."""
    for key, id in token_ids(tokenizer).items():
        if config.ids[key] != id:
            raise ModelError(
                f"{folder / 'config.json'} has {key}={config.ids[key]}, and its tokenizer {id}. Take all files of one model."
            )
