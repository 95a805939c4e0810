"""How conversations are read: the same in `pack`, `verify`, `stats` and training."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaunigame.data.conversation import (
    LAST_QUESTION,
    NO_ANSWER,
    NO_QUESTION,
    NULS,
    OPENING_ANSWER,
    SPEAKERS,
    caption_of,
    conversation_of,
    places_in,
    question_answers,
    read_conversation,
)
from megaunigame.data.decode import Sample
from megaunigame.errors import DataError
from tests.data.shard_files import talk

PAIR = (("q", "a"),)


MODEL = {"role": "assistant", "content": "a"}


def said(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": speaker, "value": text} for speaker, text in turns]


@pytest.mark.parametrize(
    "turns",
    [
        said(("human", "q"), ("gpt", "a")),
        said(("user", "q"), ("assistant", "a")),
        said(("User", "q"), ("bot", "a")),
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        [{"role": "user", "content": [{"type": "text", "text": "q"}]}, {"role": "model", "content": ["a"]}],
        [{"from": None, "role": "user", "value": None, "content": "q"}, {"role": "assistant", "content": "a"}],
        [{"user": "q", "assistant": "a", "source": "somewhere"}],
    ],
)
def test_forms_of_a_turn(turns):
    assert read_conversation(turns, 0).pairs == PAIR


def test_content_lists_mark_their_pictures():
    content = [
        {"type": "image"},
        {"type": "text", "text": "left or"},
        {"type": "image_url"},
        {"type": "text", "text": "right ?"},
    ]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "a"}]
    assert read_conversation(turns, 2).pairs == (("left or\nright ?", "a"),)
    with pytest.raises(DataError, match="<image> 2 times in its questions and 1 image$"):
        read_conversation(turns, 1)


@pytest.mark.parametrize(
    ("turns", "pairs", "left_out"),
    [
        (said(("gpt", "hello"), ("human", "q"), ("gpt", "a")), PAIR, (OPENING_ANSWER,)),
        (said(("human", "q"), ("gpt", "a"), ("human", "thanks")), PAIR, (LAST_QUESTION,)),
        (said(("human", "q"), ("human", "r"), ("gpt", "a"), ("gpt", "b")), (("q\nr", "a\nb"),), ()),
        (talk(("q", "a"), ("r", " ")), PAIR, (NO_ANSWER,)),
        (talk((" ", "b"), ("q", "a")), PAIR, (NO_QUESTION,)),
        (talk(("q\0", "a\0")), PAIR, (NULS,)),
        (said(("human", "q"), ("gpt", "a"), ("system", "now"), ("human", "r"), ("gpt", "b")), (*PAIR, ("now\nr", "b")), ()),
    ],
    ids=["gpt first", "human last", "twice", "no answer", "no question", "null", "late system"],
)
def test_what_cannot_be_asked_is_left_out_and_said(turns, pairs, left_out):
    read = read_conversation(turns, 0)
    assert read.pairs == pairs and read.left_out == left_out and read.context == ""


def test_an_empty_question_about_a_picture_is_one():
    assert read_conversation(talk(("<image>", "a cat")), 1).pairs == (("", "a cat"),)


def test_the_system_turn_stands_before_the_first_question():
    read = read_conversation(said(("system", "be short"), ("system", "be kind")) + talk(("<image>\nq", "a"), ("r", "b")), 1)
    assert read.context == "be short\nbe kind"
    assert read.asked() == [("be short\nbe kind\nq", "a"), ("r", "b")]
    assert read.asked(apart=True)[1] == ("be short\nbe kind\nr", "b")
    assert read.asked([1]) == [("be short\nbe kind\nr", "b")]


@pytest.mark.parametrize(
    ("pictures", "question", "read"),
    [
        (1, "<image>\nwhat ?", "what ?"),
        (1, "what ?\n<image>", "what ?"),
        (1, "<image>what ?", "what ?"),
        (1, "what ?", "what ?"),
        (1, "<image>\nwhat does the <image> tag do ?", "what does the <image> tag do ?"),
        (2, "is <image> left of <image> ?", "is  left of  ?"),
        (2, "first:\n<image>\nsecond:\n<image>\nsame ?", "first:\nsecond:\nsame ?"),
        (0, "what does the <image> element of rss do ?", "what does the <image> element of rss do ?"),
        (0, "mend it:\n<image>\n<url>x</url>\n</image>", "mend it:\n<image>\n<url>x</url>\n</image>"),
        (1, "<image>\nmend it:\n<image>\n</image>", "mend it:\n<image>\n</image>"),
        (1, "Write <image>x</image>\n<image>", "Write <image>x</image>"),
        (1, "Write <image>x</image>", "Write <image>x</image>"),
        (1, "What does the <image> tag do ?\n<image>", "What does the <image> tag do ?"),
        (1, "What does the <image> tag do ? <image>", "What does the <image> tag do ?"),
        (1, "mend it:\n<image>\nx\n</image>\n<image>", "mend it:\n<image>\nx\n</image>"),
        (2, "<image><image>\nis <image> there ?", "is <image> there ?"),
        (1, "<image>\r\nwhat ?", "what ?"),
    ],
)
def test_places_of_pictures_are_taken_out_and_mentions_stay(pictures, question, read):
    found = read_conversation(talk((question, "the <image> tag")), pictures)
    assert found.pairs == ((read, "the <image> tag"),)
    assert read_conversation(found.turns(pictures), pictures) == found


@pytest.mark.parametrize(
    ("pictures", "question"), [(0, "<image>\nwhat ?"), (0, "what ?\n <image> "), (1, "<image> <image> what ?")]
)
def test_a_place_without_its_picture_is_refused(pictures, question):
    with pytest.raises(DataError, match="has <image> . times in its questions"):
        read_conversation(talk((question, "a")), pictures)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["<image>", "\n<image>\n", " <image> x", "</image>", "x <image>", "<image>x</image>", "\n<image>\nx</image>"]
)


@given(st.lists(st.tuples(st.sampled_from([*SPEAKERS, "System"]), TEXTS), max_size=8), st.integers(0, 3))
def test_what_is_stored_is_read_alike(turns, pictures):
    """Whatever is read of a conversation is stored in the one form, and read from there as the same."""
    try:
        read = read_conversation(said(*turns), pictures)
    except DataError:
        return
    stored = read.turns(pictures)
    again = read_conversation(stored, pictures)
    assert (again.context, again.pairs, again.left_out) == (read.context, read.pairs, ())
    assert again.turns(pictures) == stored
    assert all(answer and (question or pictures) for question, answer in read.pairs)


def test_a_place_in_a_later_question_is_taken_before_a_mention():
    found = read_conversation(talk(("what is <image> in HTML ?", "a"), ("<image>\nr", "b")), 1)
    assert found.pairs == (("what is <image> in HTML ?", "a"), ("r", "b"))


def test_places_are_counted_in_questions_only():
    assert places_in(talk(("<image>\nq", "write <image>"))) == 1
    assert places_in([{"role": "user", "content": [{"type": "image"}, {"type": "image"}, "q"]}, MODEL]) == 2
    assert places_in(talk(("write <image>x</image>", "a"))) == 0


@pytest.mark.parametrize(("caption", "read"), [("  ", None), ("", None), (None, None), ("\0", None), ("a\0b", "ab")])
def test_a_caption_is_a_text_with_something_in_it(caption, read):
    assert caption_of(Sample("k", {"caption": caption})) == read


def test_a_sample_says_its_key():
    sample = Sample("k7", {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})
    assert question_answers(sample) == [("q", "a")] and conversation_of(sample).context == ""
    for meta, why in (({}, "has no `conversations`"), ({"conversations": said(("tool", "x"))}, "has a turn from 'tool'")):
        with pytest.raises(DataError, match=f"Sample k7 {why}"):
            question_answers(Sample("k7", meta))
