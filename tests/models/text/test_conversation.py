"""Rows as token ids: what is cut of them where they are just too long, and what is said about it. One character, one token."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken

from megaunigame.errors import DataError
from megaunigame.models.text.conversation import ConversationFormat
from megaunigame.models.text.sequences import TokenSequence
from megaunigame.step.inputs import IGNORE
from tests.models.text.test_plain_text import tokenizer

TURNS = [("what is it ?", "a ball"), ("how many ?", "two")]


class Small(ConversationFormat):
    """`^[pictures newline]question:answer$` and `;question:answer$`; a picture has 3 tokens between two others."""

    family = "Small"
    begin_of_image, end_of_image, image_token = "<b>", "<e>", "<i>"

    def __init__(self):
        super().__init__(tokenizer(*(AddedToken(name) for name in ("<b>", "<e>", "<i>"))), 3, "here")
        self.head, self.opening, self.next_opening, self.closing = [], self.encode("^"), self.encode(";"), self.encode(":")
        self.eos = self.pad = self.tokenizer.eos_token_id

    def request(self, prompt: str, source: bool) -> str:
        return prompt

    def unconditional(self, sequence: TokenSequence) -> TokenSequence:
        return sequence


@pytest.fixture(scope="module")
def small():
    return Small()


def text(small, sequence) -> str:
    return small.tokenizer.decode(sequence.tokens)


def said(small, sequence) -> str:
    return small.tokenizer.decode([label for label in sequence.labels if label != IGNORE])


def test_a_row_that_fits_exactly_is_kept(small):
    whole = small.understand(1, TURNS, False, 1000)
    assert text(small, whole) == "^<b><i><i><i><e>\nwhat is it ?:a ball</s>;how many ?:two</s>"
    assert said(small, whole) == "a ball</s>two</s>" and whole.intact and not whole.cut
    assert small.understand(1, TURNS, False, len(whole)) == whole
    least = len("^") + 5 + 1 + len(":") + len("a ball") + 1  # one token of the question
    row = small.understand(1, TURNS, False, least)
    assert len(row) == least and said(small, row) == "a ball</s>" and row.cut
    with pytest.raises(DataError, match="the answer of 7 tokens does not fit"):
        small.understand(1, TURNS, False, least - 1)
    shortest = small.fixed_length(1)
    assert len(small.understand(1, [("?", "")], False, shortest)) == shortest
    with pytest.raises(DataError, match="1 image.s. take 5 tokens"):
        small.understand(1, [("?", "")], False, shortest - 1)


@pytest.mark.parametrize("independent", [False, True])
def test_a_long_question_loses_its_middle(small, independent):
    row = small.understand(0, [("begin " + "x" * 50 + " at the end", "yes")], independent, 21)
    assert text(small, row) == "^begin x the end:yes</s>" and len(row) == 21
    assert row.cut and not row.intact


def test_turns_that_were_dropped_are_said(small):
    """A turn left out leaves the others whole."""
    row = small.understand(0, TURNS, False, len(small.understand(0, TURNS, False, 1000)) - 1)
    assert text(small, row) == "^what is it ?:a ball</s>" and row.cut and row.intact


def test_independent_turns_have_their_segments_and_nothing_between_them(small):
    row = small.understand(1, TURNS, True, 1000)
    assert text(small, row) == "^<b><i><i><i><e>\nwhat is it ?:a ball</s>\nhow many ?:two</s>"
    first, second = (len(question) + len(answer) + 3 for question, answer in TURNS)
    assert row.segments == [0] * 6 + [1] * first + [2] * second
    assert row.image == [False] * 2 + [True] * 3 + [False] * (len(row) - 5)


def test_a_row_that_is_filled_is_as_long_as_the_limit(small):
    row = small.understand(0, [("what is it ?", "a " * 100)], False, 40, fills=True)
    assert len(row) == 40 and text(small, row).startswith("^what is it ?:a a ") and not row.intact


def test_control_tokens_of_questions_and_answers_are_counted(small):
    row = small.understand(0, [("a <b> b <e>", "<i>"), ("c", "<b> <b>")], False, 1000)
    assert row.escaped == 5 and not any(row.image)


def test_a_question_after_earlier_turns_has_no_label(small):
    row = small.question(1, "is it ?", TURNS[:1])
    assert text(small, row) == "^<b><i><i><i><e>\nwhat is it ?:a ball</s>;is it ?:" and said(small, row) == ""


def test_a_prompt_that_fits_exactly_is_whole(small):
    whole = small.generate("a red cube", True, 1000)
    assert text(small, whole) == "^<b><i><i><i><e>a red cube:<b>" and whole.intact and not whole.cut
    assert small.generate("a red cube", True, len(whole)) == whole
    cut = small.generate("a red cube", True, len(whole) - 3)
    assert text(small, cut) == "^<b><i><i><i><e>a red c:<b>" and cut.cut and not cut.intact
