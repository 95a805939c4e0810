"""Neutral rows -> the tensors of Chameleon's two passes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from transformers import ChameleonConfig

from megaunigame.errors import ModelError
from megaunigame.models.causal.token_format import CodeSquares
from megaunigame.models.causal.token_rows import TokenRows
from megaunigame.models.chameleon.configuration import cell, read_config, read_sides, read_text_tokenizer
from megaunigame.models.chameleon.conversation import ChameleonFormat
from megaunigame.models.chameleon.text_tokenizer import vocabulary_map
from megaunigame.models.weights.settings_files import check_tokens, read_system_prompt


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


class ChameleonRows(TokenRows):
    """After the prompt of a generate row come the codes, up to the last one."""

    format: ChameleonFormat

    @classmethod
    def from_folder(cls, path: str | Path, *, max_length: int) -> ChameleonRows:
        """Read tokenizer and picture sizes of a model folder. Raises ModelError when a file or a token is missing."""
        folder = Path(path)
        config = read_config(folder)
        squares = CodeSquares(config.vq_config.num_embeddings, cell(config), *read_sides(folder, config))
        tokenizer = read_text_tokenizer(folder)
        check_vocabulary(config, tokenizer.get_vocab(), folder)
        check_tokens(tokenizer, config.vocab_size, folder)
        conversation = ChameleonFormat(tokenizer, squares, read_system_prompt(folder), str(folder))
        return cls(conversation, max_length=max_length)
