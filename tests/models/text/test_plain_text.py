"""Control tokens of tokenizers of other kinds than those of our families."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from megaunigame.models.text.plain_text import PlainText, ids_of


def tokenizer(*added: AddedToken, normalizer=None, unk: str | None = None) -> PreTrainedTokenizerFast:
    """Bytes are tokens; `added` come on top."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizer
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator([], trainers.BpeTrainer(special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False))
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>", unk_token=unk)
    made.add_tokens(list(added))
    return made


def test_added_tokens_in_brackets_are_controls_and_rare_characters_are_not():
    """As the tokenizer of DeepSeek has both, none of them special."""
    made = tokenizer(AddedToken("<tool_call>"), AddedToken("[IMG]"), AddedToken("ø"), AddedToken("    "))
    plain = PlainText(made, ())
    text = "søk    <tool_call> [IMG] [1] <b>"
    tokens, escaped = plain.encode(text)
    assert escaped == 2 and made.decode(tokens) == made.decode(made.encode(text, add_special_tokens=False))
    assert made.convert_tokens_to_ids("ø") in tokens and made.convert_tokens_to_ids("    ") in tokens
    assert plain.encode("søk    [1] <b>") == (made.encode("søk    [1] <b>", add_special_tokens=False), 0)


@pytest.mark.parametrize("text", ["<END> it", "a<eNd><END>", "<<END>END>"])
def test_a_normalizer_cannot_make_a_control_token(text):
    made = tokenizer(AddedToken("<end>", normalized=True), normalizer=normalizers.Lowercase())
    plain = PlainText(made, ())
    tokens, escaped = plain.encode(text)
    assert escaped and plain.controls.isdisjoint(tokens)
    assert made.decode(tokens) == text.lower()


def test_tokens_of_the_format_are_controls_whatever_the_tokenizer_says():
    made = tokenizer(AddedToken("picture"))
    identity = made.convert_tokens_to_ids("picture")
    assert PlainText(made, ()).encode("a picture")[1] == 0
    tokens, escaped = PlainText(made, (identity,)).encode("a picture picture")
    assert escaped == 2 and identity not in tokens and made.decode(tokens) == "a picture picture"


def test_an_unknown_character_is_no_control_token():
    made = tokenizer(unk="</s>")
    assert PlainText(made, ()).encode("a </s>")[1] == 1, "unless the token also ends a text"
    assert not PlainText(tokenizer(AddedToken("<unk>", special=True), unk="<unk>"), ()).encode("<unk>")[1]


def test_the_added_tokens_are_listed_a_few_times_and_not_once_for_each(monkeypatch):
    """The property makes its list at each use: with the 32,768 codes of a family, once for each would take hours."""
    made, listed = tokenizer(*(AddedToken(f"<{number}>") for number in range(9))), []
    original = type(made).added_tokens_decoder.fget
    monkeypatch.setattr(type(made), "added_tokens_decoder", property(lambda self: (listed.append(1), original(self))[1]))
    plain = PlainText(made, ())
    assert len(plain.written) == len(plain.controls) > 2 and len(listed) <= 2


def test_tokens_are_those_of_encode_whatever_an_earlier_call_left():
    """`transformers` leaves padding, truncation and the splitting of special tokens in the tokenizer."""
    made = tokenizer(AddedToken("<tool_call>", special=True))
    made.pad_token = "</s>"
    texts = ["", "a", "a </s> <tool_call> b", " ", "søk\n"]
    wanted = [made.encode(text, add_special_tokens=False) if text else [] for text in texts]
    assert [ids_of(made, text) for text in texts] == wanted
    for left in (
        {"padding": "max_length", "max_length": 9},
        {"truncation": True, "max_length": 2},
        {"split_special_tokens": True},
    ):
        made(texts, add_special_tokens=False, **left)
        assert [ids_of(made, text) for text in texts] == wanted, left
