"""Neutral rows -> the tensors of Chameleon's two passes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from transformers import ChameleonConfig

from megaunigame.errors import ModelError
from megaunigame.models.chameleon.configuration import cell, read_config, read_sides, read_text_tokenizer
from megaunigame.models.chameleon.conversation import ChameleonFormat
from megaunigame.models.chameleon.text_tokenizer import vocabulary_map
from megaunigame.models.text.picture_sides import check_size
from megaunigame.models.text.processor import HALF, RowProcessor
from megaunigame.models.weights.settings_files import read_settings


def check_vocabulary(config: ChameleonConfig, vocabulary: Mapping[str, int], folder: Path) -> None:
    """Raise ModelError where transformers' model would take another token for a code or the placeholder than the tokenizer."""
    theirs = config.vocabulary_map or {}
    named = vocabulary_map(theirs, config.vq_config.num_embeddings)
    wrong = [name for name, id in named.items() if vocabulary.get(name) != id]
    if wrong:
        raise ModelError(
            f"vocabulary_map of config.json in {folder} has {wrong[0]} at {named[wrong[0]]}, and its tokenizer at "
            f"{vocabulary.get(wrong[0])} ({len(wrong)} tokens differ). Take config.json and tokenizer of one model."
        )


class ChameleonRows(RowProcessor):
    """Square pictures of one size per path. After the prompt of a generate row come the codes, up to the last one."""

    format: ChameleonFormat

    @classmethod
    def from_folder(cls, path: str | Path, *, max_length: int) -> ChameleonRows:
        """Read tokenizer and picture sizes of a model folder. Raises ModelError when a file or a token is missing."""
        folder = Path(path)
        config = read_config(folder)
        image_size, source_size = read_sides(folder, config)
        tokenizer, pixels = read_text_tokenizer(folder), cell(config)
        check_vocabulary(config, tokenizer.get_vocab(), folder)
        check_size(tokenizer, config.vocab_size, folder)
        conversation = ChameleonFormat(
            tokenizer,
            codebook=config.vq_config.num_embeddings,
            side=image_size // pixels,
            source_side=source_size // pixels,
            system_prompt=read_settings(folder / "processor_config.json").get("system_prompt", ""),
            where=str(folder),
        )
        return cls(
            tokenizer,
            conversation,
            image_size=image_size,
            source_size=source_size,
            after_prompt=conversation.grid.count,
            loss_positions=conversation.grid.count,
            max_length=max_length,
            mean=HALF,  # sources go through the tokenizer of the targets: preprocessor_config.json does not apply
            std=HALF,
        )
