"""How long rows of every family will be, told from the amounts in their samples, against the rows themselves."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from megaunigame.step.amounts import Amounts
from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, StepPlan
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import CORPUS, generate, understand

LONGEST = 400
ASKED = RowRequest("u", UNDERSTAND, "s", 4)
TWICE = f"{CORPUS[0]} {CORPUS[1]}"
TALKS = [[(CORPUS[0], CORPUS[1])], [(CORPUS[1], TWICE), (CORPUS[0], CORPUS[0])], [(TWICE, "two")]]


@pytest.fixture
def processor(tiny):
    made = tiny.processor(LONGEST)
    text = " ".join(CORPUS)
    # Exact for these texts, so that only frames and pictures are left to differ.
    made.row_lengths.__dict__["characters_per_token"] = len(text) / len(made.format.plain.encode(text).tokens)
    return made


def amounts(pictures, texts=None, captions=None, pairs=None) -> Amounts:
    known = Amounts.empty(len(pictures))
    known.pictures[:] = pictures
    given = ((known.conversation, texts), (known.caption, captions), (known.pairs, pairs))
    for values, written in given:
        if written is not None:
            values[:] = written
    return known


def test_questions(processor):
    square = torch.zeros(3, 16, 16, dtype=torch.uint8)
    rows = [UnderstandRow([square] * pictures, talk) for talk in TALKS for pictures in (0, 1, 2)]
    there = understand(processor, *rows).attention.sum(1).numpy()
    written = [sum(len(text) for turn in row.turns for text in turn) for row in rows]
    counted = amounts([len(row.images) for row in rows], written, pairs=[len(row.turns) for row in rows])
    told = processor.lengths(ASKED, counted)
    assert np.abs(told - there).max() < 8, (told, there)
    assert processor.lengths(ASKED, amounts([9], [1e6])) == LONGEST
    odd = processor.lengths(ASKED, amounts([1, 1, 1], [np.inf, -5, 1e308], pairs=[np.inf, -1, np.nan]))
    assert (odd >= 1).all() and (odd <= LONGEST).all()
    # Without columns the JSON counts as text; with half of the pairs, half of the text.
    json_only = dataclasses.replace(amounts([1]), json_bytes=np.array([200]))
    assert processor.lengths(ASKED, json_only) == processor.lengths(ASKED, amounts([1], [200], pairs=[1]))
    one = dataclasses.replace(ASKED, turns=1)
    assert processor.lengths(one, amounts([1], [300], pairs=[2])) == processor.lengths(one, amounts([1], [150], pairs=[1]))


def test_counted_texts(tiny):
    """Exact but for the joints: a text is tokenized alone, and in its row with the space or line end before it."""
    processor = tiny.processor(LONGEST)
    processor.row_lengths.__dict__["characters_per_token"] = 1e-9  # no estimate can be right
    square, sizes = torch.zeros(3, 16, 16, dtype=torch.uint8), (0, 1, 2)
    rows = [UnderstandRow([square] * pictures, talk) for talk in TALKS for pictures in sizes]
    there = understand(processor, *rows).attention.sum(1).numpy()
    told = amounts([len(row.images) for row in rows], 7.0, pairs=[len(row.turns) for row in rows])
    told.conversation_tokens[:] = [sum(processor.count_tokens(text) for turn in row.turns for text in turn) for row in rows]
    assert (np.abs(processor.lengths(ASKED, told) - there) <= 1 + 2 * told.pairs).all()
    told.conversation_tokens[:] = 0
    assert (processor.lengths(ASKED, told) == 1).all(), "without a conversation the row is a dummy"
    captions, drawn = [CORPUS[0], TWICE], RowRequest("g", GENERATE, "s", 2)
    asked = generate(processor, *(GenerateRow(caption, square) for caption in captions)).attention.sum(1).numpy()
    counted = amounts([1, 1])
    counted.caption_tokens[:] = [processor.count_tokens(caption) for caption in captions]
    assert (np.abs(processor.lengths(drawn, counted) - processor.after_prompt - asked) <= 2).all()


def test_requests(processor):
    square = torch.zeros(3, 16, 16, dtype=torch.uint8)
    captions = [CORPUS[0], TWICE]
    drawn = RowRequest("g", GENERATE, "s", 2)
    there = generate(processor, *(GenerateRow(caption, square) for caption in captions)).attention.sum(1).numpy()
    told = processor.lengths(drawn, amounts([1, 1], captions=[len(caption) for caption in captions]))
    assert np.abs(told - there - processor.after_prompt).max() < 0.1 * there.min() + 3, (told, there)
    shown = processor.lengths(dataclasses.replace(drawn, takes_source=True), amounts([1, 0, 1], captions=[7, 7, 70]))
    assert shown[0] == shown[2] > processor.after_prompt and shown[1] == 1


def test_the_largest_rows_leave_spare_places_empty(tiny):
    plan = StepPlan((ASKED,)).with_spare_places()
    inputs = tiny.processor(90).largest(plan, UNDERSTAND)
    assert inputs.counts.gt(0).tolist() == [True] * 4 + [False]
    assert inputs.attention.sum(1).tolist() == [90] * 4 + [1]
