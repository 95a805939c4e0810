"""The text tokenizer of an Emu3.5 folder: tokenizer.json, or made of the two files of the release.

The official tokenizer is code over a file of tiktoken (Qwen's vocabulary) and a list of picture tokens. The ids follow from the
order: the vocabulary, three tokens of Qwen, 205 numbered ones, the list.
"""

from __future__ import annotations

import base64
from pathlib import Path

from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from megaunigame.errors import ModelError
from megaunigame.models.emu3_5.conversation import BOS, EOS, PAD
from megaunigame.models.weights.settings_files import read_tokenizer

VOCABULARY, PICTURE_TOKENS = "emu3.tiktoken", "emu3_vision_tokens.txt"
"""Files of the release."""
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How a text is split before its bytes are merged, as Qwen does: a digit is always alone."""
NUMBERED = 205


def open_tokenizer(folder: Path, vocabulary: int) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder. Raises ModelError that names a missing file, or a line that cannot be read."""
    if (folder / "tokenizer.json").is_file():
        return read_tokenizer(folder)
    missing = [name for name in (VOCABULARY, PICTURE_TOKENS) if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"No tokenizer.json in {folder}, and no {' and no '.join(missing)} to make it of. Copy {VOCABULARY} and "
            f"{PICTURE_TOKENS} of the release there."
        )
    return released_tokenizer(folder, vocabulary)


def released_tokenizer(folder: Path, vocabulary: int) -> PreTrainedTokenizerFast:
    """The tokenizer made of the released files, with the official ids; it takes about as long as reading tokenizer.json.

    Raises ModelError when it has other than `vocabulary` tokens: a shorter file would move every code.
    """
    named = [PAD, "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(NUMBERED))]
    try:
        pictures = (folder / PICTURE_TOKENS).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{folder / PICTURE_TOKENS} cannot be read: {error}. Copy it again.") from error
    tokens = [*named, *(line.strip() for line in pictures if line.strip())]
    tokenizer = _Converter(str(folder / VOCABULARY), PIECES, extra_special_tokens=tokens).converted()
    if tokenizer.get_vocab_size() != vocabulary:
        raise ModelError(
            f"{VOCABULARY} and {PICTURE_TOKENS} in {folder} make {tokenizer.get_vocab_size()} tokens, and vocab_size in "
            f"config.json is {vocabulary}. Copy both files of the release again."
        )
    tokenizer.normalizer = normalizers.NFC()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD)


class _Converter(TikTokenConverter):
    @staticmethod
    def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
        """Bytes -> rank. transformers would need another package to read the file."""
        file, ranks = Path(tiktoken_url), {}
        for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
            except ValueError as error:
                raise ModelError(f"{file}, line {number}, is not a token in base64 and its rank: {error}.") from error
        if sorted(ranks.values()) != list(range(len(ranks))):
            raise ModelError(f"{file} has {len(ranks)} tokens whose ranks are not 0 to {len(ranks) - 1}. Copy it again.")
        return ranks
