"""Texts of users in every family: what is cut of long ones, and control tokens that are only written."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megaunigame.errors import DataError
from megaunigame.models.text.plain_text import PlainText
from megaunigame.step.inputs import IGNORE
from megaunigame.step.requests import CROP, FIT
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import LENGTH, TURNS, generate, understand, words

LONG = "red cube left of the blue ball , " * 60
ONCE = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def processor(tiny):
    return tiny.processor()


def labeled(inputs, row=0):
    return inputs.tokens[row][inputs.labels[row] != IGNORE].tolist()


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("images", [0, 1])
def test_a_long_question_keeps_its_answer_and_both_its_ends(processor, picture, independent, images):
    row = UnderstandRow([picture(0)] * images, [("how many ? " + LONG + "what is it ?", "a red ball")], independent)
    short = UnderstandRow(row.images, [("what is it ?", "a red ball")], independent)
    cut, whole = understand(processor, row), understand(processor, short)
    assert labeled(cut) == labeled(whole) and cut.counts[0] == whole.counts[0] > 0
    assert cut.attention.sum() == LENGTH
    assert "blue ball , what is it ?" in words(processor, cut) and "how many ? red cube left" in words(processor, cut)
    assert (cut.cut.tolist(), whole.cut.tolist()) == ([True], [False]) and cut.intact.tolist() == [False]
    assert cut.image_positions.sum() == whole.image_positions.sum()


def test_independent_turns_survive_a_long_one(processor):
    turns = [TURNS[0], (LONG, "nothing"), TURNS[1], TURNS[2]]
    inputs = understand(processor, UnderstandRow([], turns, independent=True))
    expected = [token for _, answer in turns for token in processor.format._answer(answer).tokens]
    assert labeled(inputs) == expected
    text = words(processor, inputs)
    assert all(question in text for question, _ in TURNS) and inputs.cut.tolist() == [True]


def test_later_turns_that_do_not_fit_are_dropped_and_said(processor):
    inputs = understand(processor, UnderstandRow([], [TURNS[0], (LONG, "nothing"), TURNS[1]]))
    assert labeled(inputs) == processor.format._answer(TURNS[0][1]).tokens
    assert inputs.cut.tolist() == [True]


def test_an_answer_that_does_not_fit_is_refused_before_it_is_collated(processor, picture):
    row = UnderstandRow([picture(0)], [("what ?", LONG)])
    for refuse in (lambda row: processor.check(row, FIT, "a"), lambda row: understand(processor, row)):
        with pytest.raises(DataError, match=rf"the answer of \d+ tokens does not fit.*model.max_length is {LENGTH}"):
            refuse(row)
    many = UnderstandRow([picture(0)] * 50, TURNS)
    with pytest.raises(DataError, match="50 image.*take"):
        processor.check(many, FIT, "a")
    processor.check(UnderstandRow([picture(0)], TURNS), FIT, "a")
    processor.check(GenerateRow(LONG, picture(0)), CROP, "a")


@ONCE
@given(
    turns=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 40)), min_size=1, max_size=5),
    images=st.integers(0, 2),
    independent=st.booleans(),
)
def test_any_row_keeps_its_first_answer_or_is_refused(processor, picture, turns, images, independent):
    said = [("which ball ? " * asked, "the red cube " * answered) for asked, answered in turns]
    row = UnderstandRow([picture(0)] * images, said, independent)
    try:
        processor.check(row, FIT, "a")
    except DataError:
        with pytest.raises(DataError):
            understand(processor, row)
        return
    inputs = understand(processor, row)
    first = processor.format._answer(said[0][1]).tokens
    assert labeled(inputs)[: len(first)] == first
    assert inputs.attention.sum() <= LENGTH


def every_control(processor):
    tokenizer = processor.tokenizer
    return [token.content for token in tokenizer.added_tokens_decoder.values()]


def test_control_tokens_in_texts_stay_text(tiny, picture):
    processor = tiny.processor(max_length=4000)
    for written in every_control(processor)[:40]:
        text = f"what does {written}{written} mean in {written[:-1]} {written} ?"
        inputs = understand(processor, UnderstandRow([picture(0)], [(text, text), (text, text)]), UnderstandRow([], TURNS))
        clean = understand(processor, UnderstandRow([picture(0)], TURNS[:2]))
        controls = processor.format.plain.controls
        of_format = [t for t in clean.tokens[0][clean.attention[0]].tolist() if t in controls]
        kept = [t for t in inputs.tokens[0][inputs.attention[0]].tolist() if t in controls]
        assert kept == of_format, written
        assert inputs.image_positions[0].sum() == clean.image_positions[0].sum()
        assert inputs.escaped.tolist() == [12, 0]
        assert written in processor.tokenizer.decode([t for t in labeled(inputs) if t not in controls])


def test_control_tokens_in_prompts_stay_text(processor, picture):
    written = processor.format.begin_of_image
    inputs = generate(processor, GenerateRow(f"draw {written} now", picture(0)), GenerateRow("a cube", picture(0)), None)
    assert inputs.escaped.tolist() == [1, 0, 0] and inputs.cut.tolist() == [False] * 3
    begin = processor.format.begin
    assert (
        (inputs.tokens[0] == begin).sum() == (inputs.tokens[1] == begin).sum() == processor.format.request_closing.count(begin)
    )
    assert f"draw {written} now" in words(processor, inputs)
    asked = processor.prompt_inputs([[]], [f"is it {written} ?"])
    assert asked.escaped.tolist() == [1] and not (asked.tokens == begin).any()


@ONCE
@given(data=st.data())
def test_no_text_becomes_a_control_token(processor, data):
    """Texts of control tokens, halves of them and other characters, in any order."""
    plain: PlainText = processor.format.plain
    controls = every_control(processor)[:30]
    pieces = st.sampled_from([*controls, *(c[:-1] for c in controls), *(c[1:] for c in controls)]) | st.text(max_size=5)
    text = "".join(data.draw(st.lists(pieces, max_size=8)))
    tokens, escaped = plain.encode(text)
    assert plain.controls.isdisjoint(tokens)
    assert processor.tokenizer.decode(tokens, clean_up_tokenization_spaces=False) == text
    assert (escaped > 0) == any(c in text for c in every_control(processor))


@pytest.mark.parametrize("images", [0, 2])
def test_a_question_after_earlier_turns_is_the_beginning_of_the_row_that_trains_its_answer(tiny, images):
    conversation = tiny.processor().format
    *earlier, (question, answer) = TURNS
    row = conversation.understand(images, TURNS, False, 10_000)
    asked = conversation.question(images, question, earlier)
    length = len(asked)
    assert row.tokens[:length] == asked.tokens and row.image[:length] == asked.image
    assert row.tokens[length:] == conversation._answer(answer).tokens and asked.escaped == 0
    assert set(asked.labels) == {IGNORE}
    written = [("a", tiny.tokenizer.eos_token), (tiny.tokenizer.eos_token, "b")]
    assert conversation.question(images, "c", written).escaped == 2


def test_a_question_must_leave_room_for_its_answer(tiny):
    processor = tiny.processor()
    length = len(processor.format.question(0, "what ?"))
    processor.prompt_inputs([[]], ["what ?"], room=processor.max_length - length)
    with pytest.raises(DataError, match=f"The question has {length} tokens, with 0 picture.s. and 0 earlier"):
        processor.prompt_inputs([[]], ["what ?"], room=processor.max_length - length + 1)
