"""Compares a plan with the engine, on the ranks of this launch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from megaunigame.config import Recipe
from megaunigame.engine.parameters import rank_count
from megaunigame.errors import ConfigError
from megaunigame.monitoring import names
from megaunigame.parallel.ranks import start_world
from megaunigame.planning.plan import Plan
from megaunigame.profiling.measure import synthetic_trainer

STEPS = 5
"""Traces of modules are complete after three; the gathers of the last two are compared."""


@dataclass(frozen=True)
class Comparison:
    """A planned number and that of the engine."""

    what: str
    planned: int
    found: int
    not_equal_because: str = ""
    """Why the two need not be equal; empty: they must be."""

    def __str__(self) -> str:
        verdict = "DIFFERENT" if self.wrong else "equal" if self.planned == self.found else "not compared"
        why = f", because {self.not_equal_because}" if verdict == "not compared" else ""
        return f"{self.what}: planned {self.planned:,}, engine {self.found:,}: {verdict}{why}"

    @property
    def wrong(self) -> bool:
        return not self.not_equal_because and self.planned != self.found


def check(plan: Plan, recipe: Recipe, out: Path) -> list[Comparison]:
    """Collective: a few steps on synthetic rows. Raises ConfigError if launch and plan differ in the number of ranks.

    If players act aside in some steps only, or do what a plan leaves out, the bytes of a step need not be equal.
    """
    world = start_world(recipe.engine.timeout_minutes)
    if world.size != plan.cluster.ranks:
        raise ConfigError(
            f"--check runs on the {world.size} ranks of this launch, and the plan is for {plan.cluster.ranks}. "
            f"Type --nodes 1 --gpus-per-node {world.size}."
        )
    recipe = dataclasses.replace(recipe, loader=dataclasses.replace(recipe.loader, workers=0))
    trainer, micro_batches = synthetic_trainer(recipe, world, steps=STEPS, out=out)
    metrics = [trainer.train_step(micro_batches) for _ in range(STEPS)]
    elements = sum(rank_count(parameter) for parameter in trainer.learner.module.parameters())
    found = {int(step[names.PERF_ALLGATHER_BYTES]) for step in metrics[-2:]}
    world.barrier()
    gathered, what = plan.gathered + plan.aside_gathered, "bytes gathered in a step"
    every = plan.shape.rehearsed_every
    reasons = [f"players act aside every {every} steps"] if every > 1 else []
    reasons += [f"the plan leaves out {text}" for text in plan.shape.unplanned]
    return [
        Comparison("elements of a rank", plan.elements_per_rank, elements),
        *(Comparison(what, gathered, bytes_, "; ".join(reasons)) for bytes_ in sorted(found)),
    ]
