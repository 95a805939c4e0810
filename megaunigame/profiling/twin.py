"""The plain fine-tuning that a recipe is compared with: the same rows of the learner, and nothing else."""

from __future__ import annotations

import dataclasses

from megaunigame.config import Recipe
from megaunigame.errors import ConfigError
from megaunigame.step.requests import GENERATE, UNDERSTAND, StepPlan

KIND = "sft"
"""Value of --against."""
PREFIX = f"{KIND} of "
"""Prefix of the name of a twin, before the name of its recipe."""


def fine_tuning_twin(recipe: Recipe, plan: StepPlan) -> Recipe:
    """`recipe` with the objectives `understanding` and `generation` alone, which ask for as many rows of each pass as `plan`.

    Raises ConfigError for tasks in rotation: their rows differ between micro-steps.
    """
    if plan.rotations:
        raise ConfigError(
            "--against sft needs the same rows in every micro-step, but some tasks of this recipe are in rotation. "
            "Type objectives.unimrg.schedule=all."
        )
    drawn = plan.of_pass(GENERATE)
    stream = plan.streams[0]
    objectives: dict[str, dict] = {}
    if plan.rows(UNDERSTAND):
        objectives["understanding"] = {"rows": plan.rows(UNDERSTAND), "stream": stream}
    if drawn:
        shown = sum(request.count for request in drawn if request.takes_source)
        objectives["generation"] = {
            "caption_rows": plan.rows(GENERATE) - shown,
            "pixel_rows": shown,
            "stream": stream,
        }
    return dataclasses.replace(recipe, name=PREFIX + recipe.name, objectives=objectives)
