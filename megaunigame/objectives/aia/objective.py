"""AIA: a loss on each task's cross-modal attention, with targets by layer (arXiv 2511.22663).

    L = L_NTP + lambda * mean over layers l and rows b of huber_{delta_l}(I_l,b - T_l)

I_l,b: share of the attention of layer l from the queries of row b to its keys, averaged over heads before the Huber
function, so that single heads stay free. Understanding: from answers to the image; generation: from the image to the text.

AIA requests no rows and runs no passes: it measures the attention of other objectives' rows.
"""

from __future__ import annotations

from megaunigame.errors import ConfigError
from megaunigame.models.base import UnifiedModel
from megaunigame.objectives.aia.measurement import measurement_of
from megaunigame.objectives.aia.player import AttentionPlayer
from megaunigame.objectives.aia.settings import Settings
from megaunigame.objectives.base import Objective
from megaunigame.objectives.player import Context
from megaunigame.registry import unknown
from megaunigame.step.requests import RowRequest, StepPlan


class AIA(Objective):
    """One loss term per pass of the plan, over the rows of that pass."""

    Config = Settings
    measures_attention = True

    def rows(self) -> list[RowRequest]:
        return []

    def check_plan(self, plan: StepPlan) -> None:
        for term in self.config.terms:
            if term not in plan.terms:
                raise ConfigError("objectives.aia.terms: " + unknown("loss term", term, list(plan.terms)))

    def check_family(self, family: type[UnifiedModel], name: str, folder: str, plan: StepPlan) -> None:
        depth = family.language_layers(folder)
        if depth == 0:
            raise ConfigError(
                f"The family {name!r} does not measure its attention, which the objective aia needs. Leave it out."
            )
        measurement_of(self.config, plan, name, depth)

    def added_terms(self, plan: StepPlan) -> list[str]:
        return [f"aia_{name}" for name in plan.passes]

    def player(self, context: Context) -> AttentionPlayer:
        depth = context.model.install_taps()
        return AttentionPlayer(self.config, measurement_of(self.config, context.plan, context.model.name, depth), context)
