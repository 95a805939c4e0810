"""Neutral rows -> the tensors of Emu3's two passes."""

from __future__ import annotations

from pathlib import Path

from megaunigame.errors import ModelError
from megaunigame.models.causal.token_format import CodeSquares
from megaunigame.models.causal.token_rows import TokenRows
from megaunigame.models.emu3.configuration import cell, read_config, read_sides
from megaunigame.models.emu3.conversation import SYSTEM_PROMPT, Emu3Format
from megaunigame.models.weights.settings_files import check_tokens, read_system_prompt, read_tokenizer


class Emu3Processor(TokenRows):
    """After the prompt of a generate row come the codes with their line ends, up to the last code."""

    format: Emu3Format

    @classmethod
    def from_folder(cls, path: str | Path, *, max_length: int) -> Emu3Processor:
        """Read tokenizer and picture sizes of a model folder. Raises ModelError when a file or a token is missing."""
        folder = Path(path)
        config = read_config(folder)
        squares = CodeSquares(config.vq_config.codebook_size, cell(config), *read_sides(folder, config))
        if not (folder / "tokenizer.json").is_file():
            raise ModelError(
                f"No tokenizer.json in {folder}. The tokenizer of the official release is code, which is not run here: copy "
                "tokenizer.json and tokenizer_config.json there from a Hugging Face (-hf) release of the same model."
            )
        tokenizer = read_tokenizer(folder)
        check_tokens(tokenizer, config.text_config.vocab_size, folder)
        conversation = Emu3Format(tokenizer, squares, read_system_prompt(folder, SYSTEM_PROMPT), str(folder))
        return cls(conversation, max_length=max_length)
