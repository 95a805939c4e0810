"""From a decoded sample to a neutral row: what each objective takes, and what chance decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megaunigame.data.decode import Sample
from megaunigame.errors import ConfigError, DataError
from megaunigame.objectives.generation import CAPTION, Generation
from megaunigame.objectives.understanding import Understanding
from megaunigame.step.codes import PictureCodes
from megaunigame.step.requests import GENERATE, UNDERSTAND, plan_from

IMAGE = torch.arange(48, dtype=torch.uint8).reshape(3, 4, 4)


def talk(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": who, "value": text} for q, a in pairs for who, text in (("human", q), ("gpt", a))]


def sample(image: torch.Tensor | None = IMAGE, **meta) -> Sample:
    return Sample("k", {"conversations": talk(("<image>\nq0", "a0"), ("q1", "a1"), ("q2", "a2")), **meta}, image=image)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_plan_of_both_objectives():
    und, gen = Understanding(Understanding.Config(rows=3)), Generation(Generation.Config(caption_rows=2, pixel_rows=0))
    plan = plan_from(und.rows() + gen.rows())
    assert plan.terms == ("understanding", CAPTION) and plan.passes == (GENERATE, UNDERSTAND)
    assert not plan.takes_images(GENERATE), "without pixel rows the generate pass must not run the vision tower"
    both = plan_from(Generation(Generation.Config(pixel_rows=1)).rows())
    assert both.takes_images(GENERATE) and both.rows(GENERATE) == 5
    with pytest.raises(ConfigError, match="Two objectives ask for the loss term 'understanding'"):
        plan_from(und.rows() + und.rows())


def test_understanding_takes_the_conversation():
    objective = Understanding(Understanding.Config())
    row = objective.row(objective.rows()[0], sample(), rng())
    assert row.turns == [("q0", "a0"), ("q1", "a1"), ("q2", "a2")] and row.images[0] is IMAGE
    text_only = sample(image=None, conversations=talk(("q", "a")))
    assert objective.row(objective.rows()[0], text_only, rng()).images == []
    with pytest.raises(DataError, match="<image> 1 times in its questions and no image"):
        objective.row(objective.rows()[0], sample(image=None), rng())


def test_rows_come_with_the_codes_of_their_pictures():
    codes = PictureCodes("ab", 48, {("crop", 16): torch.zeros(1, 4, 4, dtype=torch.long)})
    given = Sample("k", {"caption": "a cube", "conversations": talk(("<image>\nq0", "a0"))}, image=IMAGE, codes=codes)
    asked, drawn = Understanding(Understanding.Config()), Generation(Generation.Config(pixel_rows=1))
    assert asked.row(asked.rows()[0], given, rng()).codes is codes
    caption, pixel = (drawn.row(request, given, rng()) for request in drawn.rows())
    assert caption.target_codes is pixel.target_codes is pixel.source_codes is codes and caption.source_codes is None


def test_understanding_shows_all_pictures_and_the_context():
    said = [{"from": "system", "value": "be short"}, *talk(("<image>\nq0 <image>", "a0"), ("q1", "a1"))]
    both = Sample("k", {"conversations": said}, image=IMAGE, further=[lambda: IMAGE + 1])
    row = Understanding(Understanding.Config()).row(None, both, rng())
    assert len(row.images) == 2 and torch.equal(row.images[1], IMAGE + 1)
    assert row.turns == [("be short\nq0", "a0"), ("q1", "a1")]
    apart = Understanding(Understanding.Config(independent=True, turns=1))
    drawn = {apart.row(None, both, rng(seed)).turns[0] for seed in range(20)}
    assert drawn == {("be short\nq0", "a0"), ("be short\nq1", "a1")}


def test_understanding_draws_turns_in_their_order():
    objective = Understanding(Understanding.Config(turns=2))
    drawn = [tuple(objective.row(None, sample(), rng(seed)).turns) for seed in range(40)]
    assert set(drawn) == {(("q0", "a0"), ("q1", "a1")), (("q0", "a0"), ("q2", "a2")), (("q1", "a1"), ("q2", "a2"))}


@pytest.mark.parametrize(
    "talk", [None, [], talk(("q", "a"))[:1], [{"from": "gpt", "value": "a"}, {"from": "human", "value": "q"}]]
)
def test_a_broken_conversation_is_a_bad_sample(talk):
    with pytest.raises(DataError, match="Sample k"):
        Understanding(Understanding.Config()).row(None, Sample("k", {"conversations": talk}, image=IMAGE), rng())


def test_generation_rows():
    objective = Generation(Generation.Config(caption_rows=1, pixel_rows=1, drop=0.0, pixel_prompts=["again"]))
    caption, pixel = objective.rows()
    row = objective.row(caption, sample(caption="a ball"), rng())
    assert (row.prompt, row.source, row.unconditional) == ("a ball", None, False) and row.target is IMAGE
    row = objective.row(pixel, sample(), rng())
    assert row.prompt == "again" and row.source is IMAGE and row.target is IMAGE
    assert objective.row(caption, sample(), rng()) is None, "no caption: a dummy row"
    assert objective.row(pixel, sample(image=None), rng()) is None, "text only: a dummy row"


@pytest.mark.parametrize("kind", [0, 1], ids=["caption", "pixel"])
def test_the_condition_is_dropped_as_often_as_asked(kind):
    objective = Generation(Generation.Config(pixel_rows=1, drop=0.25))
    dropped = [objective.row(objective.rows()[kind], sample(caption="x"), rng(seed)).unconditional for seed in range(2000)]
    assert abs(np.mean(dropped) - 0.25) < 0.04


def test_every_wording_is_drawn():
    objective = Generation(Generation.Config(pixel_rows=1, pixel_prompts=["a", "b", "c"]))
    assert {objective.row(objective.rows()[1], sample(), rng(seed)).prompt for seed in range(40)} == {"a", "b", "c"}


def test_rows_have_the_weights_and_numbers_of_the_recipe():
    drawn = Generation(Generation.Config(caption_rows=5, pixel_rows=6, caption_weight=2.0, pixel_weight=3.0)).rows()
    asked = Understanding(Understanding.Config(rows=7, weight=4.0)).rows()
    assert [(r.count, r.weight) for r in (*drawn, *asked)] == [(5, 2.0), (6, 3.0), (7, 4.0)]


@pytest.mark.parametrize("apart", [False, True])
def test_questions_are_apart_where_the_recipe_says_so(apart):
    row = Understanding(Understanding.Config(independent=apart)).row(None, sample(), rng())
    assert row.independent is apart
