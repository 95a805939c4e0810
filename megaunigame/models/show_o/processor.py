"""Neutral rows -> the tensors of Show-o's two passes."""

from __future__ import annotations

from pathlib import Path

from megaunigame.errors import ModelError
from megaunigame.models.causal.token_format import CodeSquares
from megaunigame.models.causal.token_rows import TokenRows
from megaunigame.models.show_o.configuration import SPECIAL_TOKENS, ShowOConfig, read_config
from megaunigame.models.show_o.conversation import ShowOFormat, add_special_tokens
from megaunigame.models.text import picture_sides
from megaunigame.models.weights.settings_files import check_tokens, read_system_prompt, read_tokenizer

TOKENIZER_HINT = (
    "A release of Show-o has no text tokenizer; its own is that of its language model: copy tokenizer.json and "
    "tokenizer_config.json of microsoft/phi-1_5 there."
)


class ShowOProcessor(TokenRows):
    """After the prompt of a generate row come all codes, and the token that ends a picture."""

    format: ShowOFormat

    @classmethod
    def from_folder(cls, path: str | Path, *, max_length: int) -> ShowOProcessor:
        """Read tokenizer and picture sizes of a model folder. Raises ModelError when a file or a token is missing."""
        folder = Path(path)
        config, tokenizer = read_config(folder), read_tokenizer(folder, TOKENIZER_HINT)
        squares = CodeSquares(config.codebook_size, config.cell, config.side * config.cell, read_source_size(folder, config))
        add_special_tokens(tokenizer, config.llm_vocab_size, str(folder))
        # Codes are counted from the end of the tokenizer: a token after it would be one of them.
        check_tokens(tokenizer, config.llm_vocab_size + SPECIAL_TOKENS, folder, key="llm_vocab_size")
        conversation = ShowOFormat(tokenizer, squares, read_system_prompt(folder), str(folder))
        return cls(conversation, max_length=max_length)


def read_source_size(folder: Path, config: ShowOConfig) -> int:
    """Side of source pictures, in pixels: `source_size` of processor_config.json, else that of generated ones.

    Raises ModelError for a side that is not a multiple of a code's.
    """
    drawn = config.side * config.cell
    image, source = picture_sides.read_sides(folder, config.cell, drawn)
    if image != drawn:
        raise ModelError(
            f"image_size={image} in {folder / picture_sides.SETTINGS}, but num_vq_tokens={config.num_vq_tokens} in config.json "
            f"draws {drawn} pixels. Leave image_size out."
        )
    return source
