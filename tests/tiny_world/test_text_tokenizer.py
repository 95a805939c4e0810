from __future__ import annotations

import pytest

from megaunigame.tiny_world.sizes import VOCABULARY
from megaunigame.tiny_world.tokenizer_text import SPECIAL_TOKENS, token_counts, train_text_tokenizer

SENTENCES = [
    "a red cube left of a blue sphere",
    "\nis the yellow object farther than the purple object ?",
    "\nwhat color is the rightmost object ?",
    " yes",
    " large red cube , small blue cylinder .",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_text_tokenizer(SENTENCES)


def test_every_word_of_the_scenes_is_one_token(tokenizer):
    counts = token_counts(tokenizer, SENTENCES)
    assert counts["single"] == counts["words"]
    assert len(tokenizer.encode(" rightmost", add_special_tokens=False)) == 1
    assert len(tokenizer) <= VOCABULARY


@pytest.mark.parametrize("text", [*SENTENCES, "Grüße, 東京 ☃\t{x}\n\n", "unseen words: <image> 123"])
def test_round_trip_of_any_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_special_tokens_are_single_and_skipped_when_decoding(tokenizer):
    ids = [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS]
    assert ids == list(range(len(SPECIAL_TOKENS)))
    text = "<|User|>: <begin_of_image><image_placeholder><end_of_image>\nwhat\n\n<|Assistant|>: yes<|end_of_sentence|>"
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert [t for t in tokens if t < len(SPECIAL_TOKENS)] == [ids[i] for i in (6, 4, 3, 5, 7, 2)]
    assert tokenizer.decode(tokens, skip_special_tokens=True) == ": \nwhat\n\n: yes"
