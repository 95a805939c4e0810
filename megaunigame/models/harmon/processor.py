"""Neutral rows -> the tensors of Harmon's two passes."""

from __future__ import annotations

from pathlib import Path

from megaunigame.models.harmon.configuration import read_config
from megaunigame.models.harmon.conversation import HarmonFormat
from megaunigame.models.text.processor import HALF, RowProcessor
from megaunigame.models.weights.settings_files import check_tokens, read_system_prompt, read_tokenizer

TOKENIZER_HINT = (
    "A release of Harmon has no tokenizer; its own is that of its language model: copy tokenizer.json and "
    "tokenizer_config.json of Qwen/Qwen2.5-1.5B-Instruct there."
)


class HarmonProcessor(RowProcessor):
    """After the prompt of a generate row come the visible tokens of the picture, at most all, and the buffers; its loss is on
    the tokens. Sources and targets are both in [-1, 1], because one autoencoder reads them."""

    format: HarmonFormat

    @classmethod
    def from_folder(cls, path: str | Path, *, max_length: int) -> HarmonProcessor:
        """Read tokenizer and picture sizes of a model folder. Raises ModelError when a file or a token is missing."""
        folder = Path(path)
        tokenizer, config = read_tokenizer(folder, TOKENIZER_HINT), read_config(folder)
        check_tokens(tokenizer, config.llm.vocab_size, folder)
        return cls(
            tokenizer,
            HarmonFormat(tokenizer, config.source_tokens, read_system_prompt(folder), str(folder)),
            image_size=config.image_size,
            source_size=config.source_size,
            after_prompt=config.tokens + config.buffers,
            loss_positions=config.tokens,
            max_length=max_length,
            mean=HALF,
            std=HALF,
        )
