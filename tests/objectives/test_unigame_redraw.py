"""Sources that another objective's rows redraw: the attack takes what the learner's own generate pass has drawn."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch

from megaunigame.errors import ConfigError, DataError
from megaunigame.objectives.aia import AIA
from megaunigame.objectives.base import Objective
from megaunigame.objectives.building import build_plan, largest_micro_step
from megaunigame.objectives.generation import Generation
from megaunigame.objectives.unigame import UniGame, names
from megaunigame.objectives.unigame.attack import ATTACK
from megaunigame.objectives.unimrg import UniMRG
from megaunigame.settings import fill
from megaunigame.step.requests import GENERATE, UNDERSTAND, StepPlan
from tests.objectives.played_by_hand import ADVERSARIES, CLIP, LM, calls_of
from tests.refusals import refused

# The plan


def drawing() -> list[Objective]:
    return [Generation(Generation.Config(caption_rows=3, caption_geometry="fit", pixel_rows=4, pixel_geometry="fit"))]


def tasks(**settings) -> list[Objective]:
    rows = {"understanding": 2, "depth": 4, "pixel": 4}
    return [UniMRG(fill(UniMRG.Config, {"rows": rows, **settings}, "objectives.unimrg"))]


def planned(others: list[Objective], **settings) -> StepPlan:
    unigame = UniGame(fill(UniGame.Config, settings, "objectives.unigame"))
    objectives = [unigame, *others]
    return build_plan(objectives)


@pytest.mark.parametrize("others", [drawing(), tasks(), tasks(images="paired", rows={"depth": 4, "pixel": 4})])
def test_another_objectives_rows_redraw_the_sources(others):
    plan = planned(others, redraw="pixel")
    (question,) = plan.aside
    assert (question.term, question.pass_name, question.shares) == (ATTACK, UNDERSTAND, "pixel")


def test_captions_redraw_sources_too():
    (question,) = planned(drawing(), redraw="caption", condition="caption", attack_rows=3).aside
    assert question.shares == "caption"


def test_without_an_attack_nothing_is_redrawn():
    assert planned([], redraw="pixel", attack_rows=0, hard_rows=0).aside == ()


@pytest.mark.parametrize(
    ("others", "settings", "parts"),
    [
        ([], {"redraw": "pixel"}, ["redraw=pixel", "objectives.unimrg.rows.pixel", "objectives.unigame.redraw=own"]),
        (tasks(), {"redraw": "pixl"}, ["objectives.unigame.redraw", "'pixl'", "Did you mean 'pixel'", "own, pixel"]),
        (tasks(), {"redraw": "depth"}, ["objectives.unigame.redraw", "'depth'", "own, pixel"]),
        (tasks(), {"redraw": "clean"}, ["objectives.unigame.redraw", "'clean'", "own, pixel"]),
        (drawing(), {"redraw": "caption", "attack_rows": 3}, ["redraw=caption", "Type objectives.unigame.condition=caption"]),
        (drawing(), {"redraw": "pixel", "condition": "caption"}, ["redraw=pixel", "objectives.unigame.condition=image"]),
        (tasks(), {"redraw": "pixel", "attack_rows": 5}, ["attack_rows=5", "have 4", "Type objectives.unigame.attack_rows=4"]),
        (tasks(stream="b"), {"redraw": "pixel", "stream": "a"}, ["stream=a", "have b", "Type objectives.unigame.stream=b"]),
        (
            tasks(geometry="crop"),
            {"redraw": "pixel"},
            ["cut the edges", "the geometry fit", "objectives.unigame.redraw=own"],
        ),
        (tasks(schedule="round_robin"), {"redraw": "pixel"}, ["in rotation", "objectives.unimrg.schedule=all", "redraw=own"]),
    ],
)
def test_rows_that_cannot_redraw_the_sources(others, settings, parts):
    with refused(*parts):
        planned(others, **settings)


# The step


PIXEL = [Generation(Generation.Config(caption_rows=1, pixel_rows=3, pixel_geometry="fit", drop=0.5))]
REDRAWN = [(mode, adversary) for mode in ("alternating", "simultaneous") for adversary in ADVERSARIES]


@pytest.mark.parametrize("mode", ["alternating", "simultaneous"])
def test_what_the_learner_has_drawn_is_attacked(play, mode):
    """The pictures are those of the pixel rows, and the perturbation is that of an attack with a separate forward."""
    game = play(others=PIXEL, redraw="pixel", mode=mode, adversary=ADVERSARIES["noise"])
    attack = game.attack()
    pixel = game.micro_batches[0].inputs[GENERATE].keys[game.plan.rows_at(GENERATE, "pixel")]
    assert attack.redraw.keys == attack.question.keys == pixel and (attack.question.counts > 0).all()
    game.step()
    ((_, attacked, _, _, *_),) = game.offered
    again = game.unigame.path.attack(game.model, attack, game.unigame._generator("attack", 0, 0))
    torch.testing.assert_close(attacked.delta, again.delta, rtol=0, atol=1e-5)
    torch.testing.assert_close(attacked.pictures, again.pictures, rtol=0, atol=1e-5)
    assert again.passes == 1 and attacked.passes == 0 and not attacked.redrawn.hidden.requires_grad


@pytest.mark.parametrize(("mode", "adversary"), REDRAWN)
def test_an_attack_on_what_is_drawn_anyway_costs_no_generate_pass(play, mode, adversary):
    """One generate, one understand pass; alternating asks about the pictures in a third. Not even the report draws again."""
    settings = {"mode": mode, "adversary": ADVERSARIES[adversary], "accumulation": 2, "every": 2}
    game = play(others=PIXEL, redraw="pixel", pictures_every=0, **settings)
    asked = ADVERSARIES[adversary].get("steps", 0) + (mode == "alternating")
    for attacks in (1, 0, 1):
        with calls_of(game.model) as called:
            game.step()
        assert called.count(LM) == 2 * (2 + attacks * asked) == 4 + game.passes
    game = play(others=PIXEL, redraw="pixel", pictures_every=1, **settings)
    with calls_of(game.model) as called:
        game.step()
    assert called.count(LM) == 4 + game.passes + 2, "the answers before and after"
    assert len(game.unigame.panels()) == 3


@pytest.mark.parametrize(("mode", "adversary"), REDRAWN)
def test_dummies_that_others_redraw_make_the_same_calls(play, mode, adversary):
    sequences = []
    for data in ("pictures", "texts"):
        settings = {"mode": mode, "adversary": ADVERSARIES[adversary], "pictures_every": 1, **CLIP}
        game = play(data, others=PIXEL, redraw="pixel", **settings)
        with calls_of(game.model) as called:
            sizes = [game.step()[names.BUFFER_SIZE] for _ in range(2)]
        sequences.append(called)
        assert (sizes[-1] > 0) == (data == "pictures"), "the cases do not differ"
    assert sequences[1] == sequences[0]


def test_a_question_about_another_picture_than_is_drawn_is_not_asked(play):
    """A sample whose conversation is bad is replaced for the attack and not for the row that draws."""
    game = play(others=PIXEL, redraw="pixel", clean_rows=0)
    row, bad = game.objective.row, game.attack().question.keys[1]

    def refusing(request: Any, sample: Any, rng: np.random.Generator):
        if sample.key == bad:
            raise DataError(f"Sample {sample.key} has no conversation.")
        return row(request, sample, rng)

    game.objective.row = refusing
    attack = game.attack()
    assert [key == bad for key in attack.redraw.keys] == [False, True, False]
    assert attack.question.keys[1] != bad and (attack.question.counts > 0).tolist() == [True, False, True]
    assert game.step()[names.BUFFER_SIZE] == 2


@pytest.mark.parametrize("mode", ["alternating", "simultaneous"])
def test_the_rehearsal_holds_the_graph_of_the_learners_pass(play, mode, monkeypatch):
    """As a step does: the attack comes between that pass and its backward."""
    game = play(others=PIXEL, redraw="pixel", mode=mode, adversary=ADVERSARIES["perturber"])
    held: list[weakref.ref] = []
    generate, perturbed = game.model.generate, game.unigame.perturbed

    def noting(*given):
        output = generate(*given)
        held.append(weakref.ref(output.loss_sum))
        return output

    def perturbing(*given):
        assert held[-1]() is not None, "the graph is gone before the attack"
        return perturbed(*given)

    monkeypatch.setattr(game.model, "generate", noting)
    monkeypatch.setattr(game.unigame, "perturbed", perturbing)
    game.unigame.rehearse(largest_micro_step(game.model.processor, [game.unigame], game.plan))
    assert len(held) == 1


def test_two_terms_of_a_name_are_refused_before_the_model():
    """Also those that a player adds."""

    class Other(Generation):
        def added_terms(self, plan):
            return ["adversary_penalty"]

    with pytest.raises(ConfigError, match="Two objectives have a loss term 'adversary_penalty'"):
        planned([Other(Generation.Config(caption_rows=1))], mode="simultaneous")


def test_two_objectives_that_measure_attention_are_refused_before_the_model():
    class Other(Generation):
        measures_attention = True

    with pytest.raises(ConfigError, match="Two objectives measure attention"):
        build_plan([Other(Generation.Config(caption_rows=1)), AIA(AIA.Config())])
