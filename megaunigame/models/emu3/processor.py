"""Neutral rows -> the tensors of Emu3's two passes."""

from __future__ import annotations

from pathlib import Path

from megaunigame.errors import ModelError
from megaunigame.models.emu3.configuration import cell, read_config, read_sides
from megaunigame.models.emu3.conversation import SYSTEM_PROMPT, Emu3Format
from megaunigame.models.text.picture_sides import check_size
from megaunigame.models.text.processor import HALF, RowProcessor
from megaunigame.models.weights.settings_files import read_settings, read_tokenizer


class Emu3Processor(RowProcessor):
    """Square pictures of one size per path. After the prompt of a generate row come the codes with their line ends, up to
    the last code; the loss is on the codes."""

    format: Emu3Format

    @classmethod
    def from_folder(cls, path: str | Path, *, max_length: int) -> Emu3Processor:
        """Read tokenizer and picture sizes of a model folder. Raises ModelError when a file or a token is missing."""
        folder = Path(path)
        config = read_config(folder)
        image_size, source_size = read_sides(folder, config)
        if not (folder / "tokenizer.json").is_file():
            raise ModelError(
                f"No tokenizer.json in {folder}. The tokenizer of the official release is code, which is not run here: copy "
                "tokenizer.json and tokenizer_config.json there from a Hugging Face (-hf) release of the same model."
            )
        tokenizer, pixels = read_tokenizer(folder), cell(config)
        check_size(tokenizer, config.text_config.vocab_size, folder)
        conversation = Emu3Format(
            tokenizer,
            codebook=config.vq_config.codebook_size,
            side=image_size // pixels,
            source_side=source_size // pixels,
            system_prompt=read_settings(folder / "processor_config.json").get("system_prompt", SYSTEM_PROMPT),
            where=str(folder),
        )
        return cls(
            tokenizer,
            conversation,
            image_size=image_size,
            source_size=source_size,
            after_prompt=conversation.grid.length - 1,
            loss_positions=conversation.grid.count,
            max_length=max_length,
            mean=HALF,  # sources go through the tokenizer of the targets: preprocessor_config.json does not apply
            std=HALF,
        )
