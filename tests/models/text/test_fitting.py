"""Which turns are kept in a row, for any lengths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaunigame.models.text.fitting import LEAST_QUESTION, kept_apart, kept_in_order

TURNS = st.lists(st.tuples(st.integers(1, 200), st.integers(1, 100)), min_size=1, max_size=8)
"""Lengths of question and of all around it."""


@pytest.mark.parametrize("kept", [kept_in_order, kept_apart])
@given(turns=TURNS, spare=st.integers(0, 300))
def test_the_first_turn_is_kept_and_the_row_is_never_too_long(kept, turns, spare):
    questions, around = zip(*turns, strict=True)
    room = around[0] + 1 + spare
    lengths = kept(questions, around, room)
    assert lengths[0] >= 1 and list(lengths) == sorted(lengths)
    assert sum(length + around[turn] for turn, length in lengths.items()) <= room
    assert all(length <= questions[turn] for turn, length in lengths.items())
    if sum(questions) + sum(around) <= room:
        assert lengths == dict(enumerate(questions))


@given(turns=TURNS, spare=st.integers(0, 300))
def test_independent_turns_are_dropped_only_without_room_for_a_cut_question(turns, spare):
    questions, around = zip(*turns, strict=True)
    room = around[0] + 1 + spare
    lengths = kept_apart(questions, around, room)
    assert all(length >= min(questions[turn], LEAST_QUESTION) for turn, length in lengths.items() if turn)
    least = sum(min(questions[turn], LEAST_QUESTION) + around[turn] for turn in lengths)
    for turn in set(range(len(questions))) - set(lengths):
        assert least + min(questions[turn], LEAST_QUESTION) + around[turn] > room


def test_a_long_question_does_not_cost_later_short_ones():
    assert kept_apart([1000, 8, 8, 500], [10, 10, 10, 10], 300) == {0: 122, 1: 8, 2: 8, 3: 122}
    assert kept_apart([8, 8, 8], [10, 400, 10], 60) == {0: 8, 2: 8}  # an answer that does not fit, and one that does


def test_turns_that_read_each_other_end_where_one_does_not_fit():
    assert kept_in_order([1000, 8], [10, 10], 300) == {0: 290}
    assert kept_in_order([20, 300, 8], [10, 10, 10], 300) == {0: 20}
