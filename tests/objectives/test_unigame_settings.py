"""What is legal among the settings of UniGame; a message names the key, what was got, and what to type."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megaunigame.adversary.perturber import Perturber
from megaunigame.data.decode import Sample
from megaunigame.errors import ConfigError
from megaunigame.models.base import UnifiedModel
from megaunigame.models.janus import Janus
from megaunigame.objectives.base import Objective
from megaunigame.objectives.unigame import UniGame
from megaunigame.objectives.unigame.attack import ATTACK
from megaunigame.objectives.unigame.settings import Settings
from megaunigame.registry import available, find
from megaunigame.settings import check_values, fill
from megaunigame.step.requests import GENERATE, UNDERSTAND, StepPlan, plan_from
from tests.data.shard_files import talk
from tests.refusals import refused

ROOT = "objectives.unigame"
SIMULTANEOUS, CLIP = {"mode": "simultaneous"}, {"clip": {"model": "tiny-random"}}
SAMPLED, EMBEDDING = {"path": "sampled"}, {"path": "embedding"}


def game(**settings) -> UniGame:
    return UniGame(fill(Settings, settings, ROOT))


LEGAL = [
    {},
    {"path": "decoder", "anchor": "none", "condition": "caption", "prompts": []},
    {"path": "embedding", **SIMULTANEOUS},
    {**SIMULTANEOUS, "adversary": {"kind": "pgd", "steps": 2}},
    {**SAMPLED, "sampling": {"candidates": 3, "temperature": 0.0}, "adversary": {"kind": "noise"}},
    {"attack_rows": 0, "hard_rows": 0},
    {"attack_rows": 0, "hard_rows": 0, "clip": {"model": "no such model"}},
    {"beta": 0.0, "hard_rows": 0},
    {"buffer": {"percentile": 0, "capacity": 1, "merge_every": 1, "temperature": 1e-3}},
    {"buffer": {"percentile": 99.9}},
    {**CLIP, "penalties": {"clip": 1.0}},
    {"clip": {"model": "tiny-random", "tau": -1.0}},
    {"clip": {"model": "tiny-random", "tau": 1.0, "compare": "text"}},
]


@pytest.mark.parametrize("settings", LEGAL, ids=str)
def test_legal(settings):
    game(**settings)


# Settings, and what the message must hold: the key, what was got, and how to fix it.
ILLEGAL = [
    ({"mode": "simultanous"}, ["objectives.unigame.mode", "'simultanous'", "Did you mean 'simultaneous'", "alternating"]),
    ({"path": "decode"}, ["objectives.unigame.path", "'decode'", "Did you mean 'decoder'", "embedding", "sampled"]),
    ({"path": "noise"}, ["objectives.unigame.path=noise", "Type objectives.unigame.adversary.kind=noise"]),
    ({"anchor": "sorce"}, ["objectives.unigame.anchor", "'sorce'", "Did you mean 'source'"]),
    ({"condition": "text"}, ["objectives.unigame.condition", "'text'", "image", "caption"]),
    ({"clean_rows": -1}, ["objectives.unigame.clean_rows", "at least 0", "-1"]),
    ({"hard_rows": -2}, ["objectives.unigame.hard_rows", "at least 0", "-2"]),
    ({"attack_rows": -1}, ["objectives.unigame.attack_rows", "at least 0", "-1"]),
    ({"every": 0}, ["objectives.unigame.every", "at least 1", "got 0"]),
    ({"pictures": -1}, ["objectives.unigame.pictures", "at least 0", "-1"]),
    ({"pictures_every": -1}, ["objectives.unigame.pictures_every", "at least 0", "-1"]),
    ({"attack_rows": 0}, ["objectives.unigame.hard_rows=1", "attack_rows", "hard_rows=0"]),
    ({**SIMULTANEOUS, "beta": 0.0}, ["objectives.unigame.beta=0", "beta above 0"]),
    ({**SIMULTANEOUS, **SAMPLED}, ["path=sampled", "Type objectives.unigame.mode=alternating"]),
    ({**SAMPLED, "adversary": {"kind": "pgd"}}, ["pgd", "path=sampled", "Type objectives.unigame.path=decoder"]),
    ({**SAMPLED, "sampling": {"candidates": 0}}, ["objectives.unigame.sampling.candidates must be at least 1", "got 0"]),
    ({**SAMPLED, "sampling": {"temperature": -1.0}}, ["objectives.unigame.sampling.temperature", "at least 0", "got -1.0"]),
    ({"redraw": "pixel", "path": "embedding"}, ["redraw=pixel", "path=embedding", "Type objectives.unigame.redraw=own"]),
    ({"redraw": "pixel", **SAMPLED}, ["redraw=pixel", "path=sampled", "objectives.unigame.path=decoder"]),
    ({"prompts": []}, ["objectives.unigame.prompts", "at least one"]),
    ({"adversary": {"kind": "pertuber"}}, ["adversary", "'pertuber'", "Did you mean 'perturber'", "noise", "pgd"]),
    ({"adversary": {"kind": "perturber", "eps": 0.1}}, ["objectives.unigame.adversary", "eps"]),
    ({"adversary": {"kind": "noise", "eps_max": 0.0}}, ["objectives.unigame.adversary.eps_max", "greater than 0", "got 0.0"]),
    ({"penalties": {"clip": 1.0}}, ["objectives.unigame.penalties.clip", "objectives.unigame.clip"]),
    ({"buffer": {"percentile": 100.0}}, ["objectives.unigame.buffer.percentile", "[0, 100)", "got 100.0"]),
    ({"buffer": {"percentile": -1.0}}, ["objectives.unigame.buffer.percentile", "[0, 100)", "got -1.0"]),
    ({"buffer": {"percentile": float("nan")}}, ["objectives.unigame.buffer.percentile", "got nan"]),
    ({"buffer": {"capacity": 0}}, ["objectives.unigame.buffer.capacity must be at least 1", "got 0"]),
    ({"buffer": {"merge_every": 0}}, ["objectives.unigame.buffer.merge_every must be at least 1", "got 0"]),
    ({"buffer": {"max_age": -1}}, ["objectives.unigame.buffer.max_age must be at least 0", "got -1"]),
    ({"buffer": {"temperature": 0.0}}, ["objectives.unigame.buffer.temperature must be greater than 0", "got 0.0"]),
    ({"clip": {"model": "tiny-random", "tau": 1.5}}, ["objectives.unigame.clip.tau", "got 1.5", "[-1, 1]"]),
    ({"clip": {"model": "tiny-random", "tau": -1.01}}, ["objectives.unigame.clip.tau", "got -1.01", "[-1, 1]"]),
    ({"clip": {"model": "ViT-B-32"}}, ["clip.pretrained", "is empty", "/path/to"]),
    ({"clip": {"model": "tiny-random", "compare": "caption"}}, ["objectives.unigame.clip.compare", "'caption'", "image, text"]),
    ({"clip": {"model": "tiny-random", "tow": 0.5}}, ["objectives.unigame.clip", "tow"]),
    ({"turns": -1}, ["objectives.unigame.turns", "at least 0"]),
    ({"betta": 0.5}, ["objectives.unigame", "betta"]),
    *(({key: -0.75}, [f"objectives.unigame.{key}", "-0.75"]) for key in ("beta", "ratio", "gain", "clip_norm", "weight_decay")),
    *(({"penalties": {key: -0.25}, **CLIP}, [f"penalties.{key}", "-0.25"]) for key in ("l2", "tv", "gate", "clip")),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "parts"), ILLEGAL, ids=str)
def test_illegal(settings, parts):
    with refused(*parts):
        game(**settings)


def test_an_adversary_without_a_kind():
    with pytest.raises(ConfigError, match=r"names no kind\. Type objectives\.unigame\.adversary\.kind=perturber"):
        check_values(Settings(adversary={"eps_max": 0.1}), ROOT)


def test_a_recipe_that_names_no_kind_gets_the_perturber():
    """The recipe's settings are merged into the defaults."""
    made = game(adversary={"eps_max": 0.1})
    assert made.kind is Perturber and made.adversary_config.eps_max == 0.1


def test_a_game_that_pays_for_clip_is_planned_without_loading_one():
    planned = UniGame.planned(fill(Settings, {**CLIP, "penalties": {"clip": 1.0}}, ROOT))
    assert planned.clip is None and planned.config.clip is not None


def test_the_defaults_are_those_of_the_paper():
    s = Settings()
    assert (s.beta, s.ratio, s.gain, s.mode, s.path, s.anchor) == (0.5, 250.0, 120.0, "alternating", "decoder", "source")
    assert (s.penalties.l2, s.penalties.tv, s.buffer.percentile) == (1e-4, 1e-5, 60.0)


# Families

PLAN = StepPlan(())


class Latents(UnifiedModel):
    """A family that generates latents and has no way back to pixels with a gradient."""

    has_decoder = False


class Plain:
    """A family whose drawing takes no perturbation."""

    has_decoder = True

    def sample(self, inputs, *, guidance, temperature, generator):
        raise AssertionError


def test_families_without_a_decoder_are_not_recommended(monkeypatch):
    monkeypatch.setattr(Janus, "has_decoder", False)
    others = [name for name in available("models", UnifiedModel) if name != "janus"]
    with refused(f"Families that have one: {', '.join(others)}."):
        game().check_family(Janus, "janus", "", PLAN)


@pytest.mark.parametrize(
    ("family", "settings"),
    [(Latents, EMBEDDING), (Latents, {"attack_rows": 0, "hard_rows": 0}), (Plain, EMBEDDING), (Janus, {})],
    ids=["no decoder is needed", "nothing is attacked", "no sampling is needed", "it has a decoder"],
)
def test_a_family_is_welcome(family, settings):
    game(**settings).check_family(family, "a family", "", PLAN)


# Rows


def test_the_objective_is_found_by_its_name():
    assert find("objectives", "unigame", Objective) is UniGame


def test_the_plan_of_each_mode():
    alternating = plan_from(game(clean_rows=3, hard_rows=2, attack_rows=4).rows())
    assert alternating.terms == ("clean", "hard") and alternating.rows(UNDERSTAND) == 5
    assert [r.count for r in alternating.aside] == [4, 4] and alternating.rows_per_micro_step() == 5
    simultaneous = plan_from(game(clean_rows=3, hard_rows=2, attack_rows=4, **SIMULTANEOUS).rows())
    assert simultaneous.terms == ("clean", "hard", "adversarial") and simultaneous.rows(UNDERSTAND) == 9
    weights = {r.term: (r.weight, r.stream, r.takes_source) for r in simultaneous.requests if not r.aside}
    assert weights == {"clean": (1.0, "train", True), "hard": (0.5, None, True), "adversarial": (0.5, None, True)}
    redraw, question = simultaneous.aside
    assert (redraw.pass_name, redraw.stream, redraw.takes_source) == (GENERATE, "train", True)
    assert (question.pass_name, question.stream, question.shares) == (UNDERSTAND, "train", redraw.term)
    redraw, _ = plan_from(game(condition="caption").rows()).aside
    assert not redraw.takes_source
    assert plan_from(game(attack_rows=0, hard_rows=0, **SIMULTANEOUS).rows()).terms == ("clean",)


@pytest.mark.parametrize(
    ("family", "path", "lacking"),
    [
        (Latents, "decoder", "differentiable decoder"),
        (Latents, "sampled", "differentiable decoder"),
        (Plain, "sampled", "`sample` with `perturb`"),
    ],
)
def test_a_family_without_what_the_path_needs_is_refused_before_its_weights(family, path, lacking):
    objective = game(path=path)
    advice = "Families that have one:", "emu3, emu3_5", "janus, openuni", "objectives.unigame.path=embedding"
    with refused(f"'plain' has no {lacking}", f"path={path}", *advice):
        objective.check_family(family, "plain", "folder", plan_from(objective.rows()))


def test_questions_about_several_pictures_are_not_attacked():
    """One picture is redrawn; the others would be missing from the row."""
    (attack,) = [request for request in game().rows() if request.term == ATTACK]
    picture = torch.zeros(3, 8, 8, dtype=torch.uint8)
    meta = {"conversations": talk(("which is left ?", "the first"))}
    assert game().row(attack, Sample("k", meta, image=picture), np.random.default_rng(0)) is not None
    assert game().row(attack, Sample("k", meta, image=picture, further=[picture]), np.random.default_rng(0)) is None
