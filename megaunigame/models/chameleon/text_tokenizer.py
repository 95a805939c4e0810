"""The text tokenizer of the original release, and what transformers' model needs of a vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from megaunigame.errors import ModelError
from megaunigame.models.chameleon.code_names import code_token

TEXT_TOKENIZER = "text_tokenizer.json"
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
PLACEHOLDER, RESERVED = "<image>", "<reserved08707>"
"""Placeholder of a picture in transformers' processor, and its name in the original release; our rows need none."""


def read_release_tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """text_tokenizer.json of the original release, with the placeholder of the Hugging Face conversion.

    Raises ModelError when it cannot be read.
    """
    text = file.read_text(encoding="utf-8").replace(f'"{RESERVED}"', f'"{PLACEHOLDER}"')
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain exceptions
        raise ModelError(f"{file} is not a tokenizer: {error}. Copy it again.") from error
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD)


def vocabulary_map(vocabulary: Mapping[str, int], codebook: int) -> dict[str, int]:
    """The part of the vocabulary that transformers' model reads from its configuration: codes and placeholder."""
    names = [*map(code_token, range(codebook)), PLACEHOLDER]
    return {name: vocabulary[name] for name in names if name in vocabulary}
