"""Rows of edits: which pictures and texts a row shows, what chance decides, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megaunigame.data.decode import Sample
from megaunigame.errors import ConfigError, DataError
from megaunigame.models.base import UnifiedModel
from megaunigame.objectives.editing import Editing
from megaunigame.registry import find
from megaunigame.step.requests import GENERATE, plan_from
from megaunigame.step.rows import ShownPicture

WHOLE = {"drop_text": 0.0, "drop_latents": 0.0, "drop_seen": 0.0, "joined": 0.0}
CHAIN = ["red", ["night", "dark"], "with the hat of <image> on"]


def sample(pictures: int = 5, edits: list | None = CHAIN) -> Sample:
    images = [torch.full((3, 2, 2), number, dtype=torch.uint8) for number in range(pictures)]
    return Sample("k", {} if edits is None else {"edits": edits}, image=images[0], further=images[1:])


def editing(**settings) -> Editing:
    objective = Editing(Editing.Config(**settings))
    objective.name = "editing"
    return objective


def rows(objective: Editing, of: Sample, count: int = 60):
    return [objective.row(objective.rows()[0], of, np.random.default_rng(seed)) for seed in range(count)]


def said(row) -> tuple:
    """Numbers of pictures, texts, the prompt, and the number of the target."""
    context = tuple(int(part.picture[0, 0, 0]) if isinstance(part, ShownPicture) else part for part in row.context)
    return (*context, row.prompt, int(row.target[0, 0, 0]))


def test_the_plan_takes_sources():
    (request,) = editing(rows=2, sources=3).rows()
    plan = plan_from([request])
    assert plan.passes == (GENERATE,) and plan.takes_images(GENERATE) and request.context_pictures == 3


def test_a_row_goes_on_from_the_picture_before_it():
    found = {said(row) for row in rows(editing(sources=9, history=9, **WHOLE), sample(), 300)}
    one = {(0, "red", 1)}
    two = {(1, text, 2) for text in ("night", "dark")} | {(0, "red", 1, text, 2) for text in ("night", "dark")}
    hat = ("with the hat of", 3, "on", 4)
    three = {(2, *hat)} | {(1, text, 2, *hat) for text in ("night", "dark")}
    three |= {(0, "red", 1, text, 2, *hat) for text in ("night", "dark")}
    assert found == one | two | three


def test_history_and_pictures_are_bounded():
    assert {len(row.context) for row in rows(editing(sources=9, history=0, **WHOLE), sample())} == {1, 3}
    shown = [said(row) for row in rows(editing(sources=2, history=2, **WHOLE), sample())]
    assert max(sum(isinstance(part, int) for part in row[:-1]) for row in shown) == 2
    with pytest.raises(DataError, match="Sample k: edit 3 shows 2 pictures, more than objectives.editing.sources=1"):
        rows(editing(sources=1), sample())


def test_instructions_are_joined_as_often_as_asked():
    chain, whole = sample(4, ["red", "night", "small"]), {**WHOLE, "sources": 9, "history": 2}
    found = {said(row) for row in rows(editing(**{**whole, "joined": 1.0}), chain, 300)}
    one = {(0, "red", 1), (1, "night", 2), (2, "small", 3)}
    assert found == one | {(0, "red. night.", 2), (1, "night. small.", 3), (0, "red. night. small.", 3)}
    half = [said(row) for row in rows(editing(**{**whole, "joined": 0.5, "history": 1}), chain, 2000)]
    joined, apart = half.count((0, "red. night.", 2)), half.count((0, "red", 1, "night", 2))
    assert abs(joined / (joined + apart) - 0.5) < 0.1
    own = {said(row) for row in rows(editing(**{**whole, "joined": 1.0}), sample(5, ["red", "with <image> on", "small"]), 300)}
    hat = (1, "with", 2, "on", 3)
    assert own == {(0, "red", 1), hat, (0, "red", *hat), (3, "small", 4), (0, "red", *hat, "small", 4),
                   (1, "with", 2, "on. small.", 4)}  # fmt: skip


def test_every_condition_is_dropped_by_itself_as_often_as_asked():
    drawn = rows(editing(drop_text=0.1, drop_latents=0.3, drop_seen=0.25, history=0), sample(2, ["red"]), 2000)
    pictures = [row.context[0] for row in drawn]
    assert abs(np.mean([row.unconditional for row in drawn]) - 0.1) < 0.03
    assert abs(np.mean([not part.latents for part in pictures]) - 0.3) < 0.04
    assert abs(np.mean([not part.seen for part in pictures]) - 0.25) < 0.04
    assert abs(np.mean([not (part.latents or part.seen) for part in pictures]) - 0.075) < 0.03
    texts = [len(row.context) for row in rows(editing(drop_text=0.4, joined=0.0), sample(3, ["red", "night"]), 2000)]
    assert set(texts) == {1, 2, 3}  # one edit, two without the text between them, two with it


def test_a_sample_without_edits_is_a_dummy_and_a_broken_one_is_bad():
    objective = editing()
    assert objective.row(objective.rows()[0], sample(edits=None), np.random.default_rng(0)) is None
    with pytest.raises(DataError, match="Sample k has 2 picture"):
        rows(objective, sample(2))


def test_families_with_one_source_are_refused():
    plan = plan_from(editing().rows())
    with pytest.raises(ConfigError, match="the family 'janus' draws from one. Families that can: bagel. Or type objectives.ed"):
        editing().check_family(find("models", "janus", UnifiedModel), "janus", "folder", plan)
    editing(rows=0).check_family(find("models", "janus", UnifiedModel), "janus", "folder", plan)
    editing().check_family(find("models", "bagel", UnifiedModel), "bagel", "folder", plan)
