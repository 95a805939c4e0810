"""Operations of measured steps: one step of each kind is repeated after them, and counted."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from megaunigame.data.loading.loader import MicroBatchLoader
from megaunigame.engine.model_flops import CountFlops
from megaunigame.monitoring import names
from megaunigame.training.trainer import Trainer


def count_flops(trainer: Trainer, metrics: Sequence[dict[str, float]], first: int) -> list[float]:
    """Model FLOPs of all ranks in each of the steps that reported `metrics`; `first`: steps that were made before them.

    Counting slows a step down, so no step is both timed and counted. A repeated step has the same number and the same rows. Two
    steps are of one kind if their passes, tokens and rows of each term are equal.
    Collective; changes the trainer's step.
    """
    kinds = [_kind(trainer, first + index, step) for index, step in enumerate(metrics)]
    counted = {kind: _count(trainer, first + kinds.index(kind)) for kind in dict.fromkeys(kinds)}
    return [counted[kind] for kind in kinds]


def _kind(trainer: Trainer, number: int, step: dict[str, float]) -> Hashable:
    micro_steps = range(number * trainer.accumulation, (number + 1) * trainer.accumulation)
    plans = tuple(trainer.plan.at(micro_step, trainer.recipe.seed) for micro_step in micro_steps)
    return step[names.PERF_PASSES], round(step[names.PERF_TOKENS_PER_SECOND] * step[names.PERF_STEP_SECONDS]), plans


def _count(trainer: Trainer, number: int) -> float:
    """Of step `number`, which is repeated."""
    world, accumulation = trainer.world, trainer.accumulation
    trainer.state.step = number
    rows = MicroBatchLoader(trainer.micro_batches, number * accumulation, (number + 1) * accumulation, workers=0)
    with CountFlops() as count:
        trainer.train_step(iter(rows))
    return world.all_reduce_sum(torch.tensor([float(count.flops)], dtype=torch.float64, device=world.device)).item()
