"""Byte-level BPE tokenizers for small models: trained on a few sentences, able to spell any text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from megaunigame.errors import ModelError

STAND_IN_TEXT = ("USER: ASSISTANT: user assistant", "You are a helpful assistant.", "Generate an image: a picture of a cat.")
"""Training text of the tokenizer of a folder without weights."""
STAND_IN_VOCABULARY = 320


def small_tokenizer(
    texts: Iterable[str], vocabulary: int, special: Sequence[str], *, pad: str, bos: str | None, eos: str
) -> PreTrainedTokenizerFast:
    """At most `vocabulary` tokens, those of `special` among them. Raises ModelError when even bytes do not fit."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(special) + len(alphabet)
    if vocabulary < least:
        raise ModelError(f"vocabulary={vocabulary} is too small: bytes and special tokens alone are {least}.")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(special), initial_alphabet=sorted(alphabet), show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    named = {"pad_token": pad, "eos_token": eos} | ({"bos_token": bos} if bos else {})
    # The others are special in `bpe` itself. transformers' own list of them takes minutes for a hundred thousand codes.
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **named)
