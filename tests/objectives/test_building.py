"""What a recipe's objectives may not be together: refused before the model, with the keys that are wrong."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from megaunigame.errors import ConfigError, ModelError
from megaunigame.objectives.aia.player import AttentionLoss
from megaunigame.objectives.base import Objective
from megaunigame.objectives.building import build_objectives, build_plan, build_players
from megaunigame.objectives.player import Player
from megaunigame.objectives.understanding import Understanding
from megaunigame.step.inputs import GenerateOutput
from megaunigame.step.losses import LossTerms
from megaunigame.step.micro import Step
from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, plan_from
from tests.worlds import OneRank


class Asking(Objective):
    """Asks for the rows it is given."""

    def __init__(self, *requests: RowRequest, losses=(), announced=()):
        super().__init__(None)
        self.name, self.requests, self.losses, self.announced = "asking", list(requests), losses, announced

    def rows(self):
        return self.requests

    def added_terms(self, plan):
        return self.announced

    def player(self, context):
        player = Player()
        player.losses = self.losses
        return player


def test_a_stream_that_the_recipe_lacks_is_named_with_its_key():
    recipe = SimpleNamespace(objectives={"understanding": {"stream": "train"}}, data={"scenes": None})
    with pytest.raises(
        ConfigError, match=r"^objectives.understanding: Unknown stream .*'train'.*objectives.understanding.stream=scenes"
    ):
        build_objectives(recipe)
    recipe.objectives["understanding"]["rows"] = 0
    assert len(build_objectives(recipe)) == 1, "no rows need no stream"


def test_an_objective_with_rows_and_no_way_to_make_them_is_refused_at_once(monkeypatch):
    monkeypatch.delattr(Understanding, "row")
    recipe = SimpleNamespace(objectives={"understanding": {"stream": "s"}}, data={"s": None})
    with pytest.raises(
        ConfigError, match="objectives.understanding requests rows, and its class Understanding has no method `row`"
    ):
        build_objectives(recipe)


@pytest.mark.parametrize(
    "owner",
    [
        RowRequest("other", GENERATE, "s", 2),
        RowRequest("drawn", GENERATE, "s", 3),
        RowRequest("drawn", GENERATE, "t", 2),
    ],
    ids=["no such term", "another number", "another stream"],
)
def test_rows_can_share_samples_only_with_as_many_rows_of_their_stream(owner):
    asked = RowRequest("asked", UNDERSTAND, "s", 2, shares="drawn")
    assert build_plan([Asking(RowRequest("drawn", GENERATE, "s", 2), asked)]).terms == ("drawn", "asked")
    with pytest.raises(ConfigError, match="2 rows of 'asked' share the samples of 'drawn'.*as many rows of the same stream"):
        build_plan([Asking(owner, asked)])


def test_a_loss_must_be_announced():
    row = RowRequest("u", UNDERSTAND, "s", 1)
    context = SimpleNamespace(plan=plan_from([row]))
    assert len(build_players([Asking(row, losses=("x",), announced=("x",))], context)) == 1
    with pytest.raises(ConfigError, match="player of asking has a loss 'x', which its `added_terms` does not name"):
        build_players([Asking(row, losses=("x",))], context)


def test_two_objectives_with_one_loss_are_both_named():
    row = RowRequest("u", UNDERSTAND, "s", 1)
    with pytest.raises(ConfigError, match="a loss term 'x': asking, asking"):
        build_plan([Asking(row, announced=("x",)), Asking(announced=("x",))])


def test_a_misspelt_loss_in_a_micro_step_is_refused():
    terms = LossTerms(plan_from([RowRequest("u", UNDERSTAND, "s", 1)]), (), ("penalty",), OneRank())
    assert terms.joined_sums({"penalty": torch.tensor(2.0)}, torch.zeros(2)).tolist() == [0.0, 2.0]
    with pytest.raises(ValueError, match="'penalti', which no player names in its `losses`"):
        terms.joined_sums({"penalti": torch.tensor(2.0)}, torch.zeros(2))


def test_factors_of_a_step_reach_every_kind_of_term():
    terms = LossTerms(
        plan_from([RowRequest("u", UNDERSTAND, "s", 1, 3.0), RowRequest("v", UNDERSTAND, "s", 1)]), (), ("p",), OneRank()
    )
    now = Step(0, 1.0, [], 1.0, factors={"u": 0.5, "p": 0.25})
    assert terms.weights(now).tolist() == [1.5, 1.0, 0.25]


def test_an_objective_that_asks_for_rows_makes_them():
    with pytest.raises(NotImplementedError, match="Asking requests rows of 'u' and has no method `row`"):
        Asking().row(RowRequest("u", UNDERSTAND, "s", 1), None, None)


def test_a_family_whose_pass_measures_nothing_is_named():
    loss = object.__new__(AttentionLoss)
    loss.pass_name = GENERATE
    with pytest.raises(ModelError, match="The generate pass of this family does not measure its attention"):
        loss.losses(None, GenerateOutput(torch.zeros(1), torch.zeros(1), torch.zeros(1)))
