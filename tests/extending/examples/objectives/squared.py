"""Squared: also the mean square of the rows' losses, so that hard rows pull harder. It has no rows, only a player."""

from dataclasses import dataclass

import torch

from megaunigame.errors import ConfigError
from megaunigame.objectives.base import Objective
from megaunigame.objectives.player import Player
from megaunigame.settings import at_least
from megaunigame.step.inputs import UnderstandOutput
from megaunigame.step.losses import PassTerm
from megaunigame.step.requests import UNDERSTAND


class Squared(Objective):
    @dataclass
    class Config:
        weight: float = at_least(0, 0.1)

    def rows(self):
        return []

    def check_plan(self, plan):
        if UNDERSTAND not in plan.passes:
            raise ConfigError("The objective `squared` needs understand rows of another one. Add `understanding`.")

    def added_terms(self, plan):
        return ["squared"]

    def player(self, context):
        return SquaredPlayer(self.config, context)


def row_losses(inputs, output):
    """(B,) float32: the mean loss of every row, 0 for dummy rows."""
    return output.loss_sum / inputs.counts.clamp(min=1)


class SquaredLosses(PassTerm):
    """The loss term, and so the metric `loss/squared`."""

    def __init__(self, weight):
        super().__init__("squared", UNDERSTAND)
        self.factor = weight

    def weight(self, step):
        return self.factor

    def counted(self, inputs):
        return inputs.counts > 0

    def losses(self, inputs, output):
        return row_losses(inputs, output).square()


class SquaredPlayer(Player):
    """Measures the largest loss of a row in the step: the metric `squared/worst_row`."""

    def __init__(self, config, context):
        self.data_ranks = context.data_ranks
        self.terms = [SquaredLosses(config.weight)]

    def before_learner(self, step):
        self.worst = torch.zeros(1, device=self.data_ranks.device)

    def after_pass(self, step, micro, output):
        if isinstance(output, UnderstandOutput):
            self.worst = self.worst.maximum(row_losses(micro.understand, output).detach().max())

    def after_learner(self, step):
        return {"squared/worst_row": self.data_ranks.all_reduce_max(self.worst).item()}
