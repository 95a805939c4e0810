"""A plan held against the engine it is about, on the ranks of this launch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megaunigame.config import Recipe
from megaunigame.distributed import start_world
from megaunigame.engine.parameters import rank_count
from megaunigame.errors import ConfigError
from megaunigame.monitoring import names
from megaunigame.planning.plan import Plan
from megaunigame.profiling.measure import synthetic_steps

STEPS = 5
"""The orders of modules are complete after three; the gathers of the last two are compared."""


@dataclass(frozen=True)
class Checked:
    """What was planned, and what the engine says."""

    what: str
    planned: int
    found: int

    def __str__(self) -> str:
        verdict = "equal" if self.planned == self.found else "DIFFERENT"
        return f"{self.what}: planned {self.planned:,}, engine {self.found:,}: {verdict}"


def check(plan: Plan, recipe: Recipe, out: Path) -> list[Checked]:
    """Collective: a few steps on synthetic rows. Raises ConfigError where the launch has other ranks than the plan.

    An attack gathers weights that a plan does not count: with attacks, only elements are compared.
    """
    world = start_world(recipe.engine.timeout_minutes)
    if world.size != plan.cluster.ranks:
        raise ConfigError(
            f"--check runs on the {world.size} ranks of this launch, and the plan is for {plan.cluster.ranks}. "
            f"Type --nodes 1 --gpus-per-node {world.size}."
        )
    trainer, metrics = synthetic_steps(recipe, world, steps=STEPS, out=out)
    elements = sum(rank_count(parameter) for parameter in trainer.learner.module.parameters())
    checked = [Checked("elements of a rank", plan.elements_per_rank, elements)]
    if not plan.step.attack_flops:
        found = {int(step[names.PERF_ALLGATHER_BYTES]) for step in metrics[-2:]}
        checked += [Checked("bytes gathered in a step", plan.gathered, bytes_) for bytes_ in sorted(found)]
    world.barrier()
    return checked
