"""Operations of measured steps: one step of each kind is made again after them, and counted."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from megaunigame.data.loading.stream import micro_batch_loader
from megaunigame.engine.model_flops import CountFlops
from megaunigame.monitoring import names
from megaunigame.training.trainer import Trainer


def count_flops(trainer: Trainer, metrics: Sequence[dict[str, float]], first: int) -> list[float]:
    """Model FLOPs of all ranks in each of the steps that reported `metrics`; `first`: steps that were made before them.

    Counting slows a step down, so no step is both timed and counted. A step that is made again has the number and the rows that
    it had. Two steps are of one kind when they make as many passes with as many tokens and the same rows of each term.
    Collective; moves the trainer's step.
    """
    kinds = [_kind(trainer, first + index, step) for index, step in enumerate(metrics)]
    counted = {kind: _count(trainer, first + kinds.index(kind)) for kind in dict.fromkeys(kinds)}
    return [counted[kind] for kind in kinds]


def _kind(trainer: Trainer, number: int, step: dict[str, float]) -> Hashable:
    micro_steps = range(number * trainer.accumulation, (number + 1) * trainer.accumulation)
    plans = tuple(trainer.plan.at(micro_step, trainer.recipe.seed) for micro_step in micro_steps)
    return step[names.PERF_PASSES], round(step[names.PERF_TOKENS_PER_SECOND] * step[names.PERF_STEP_SECONDS]), plans


def _count(trainer: Trainer, number: int) -> float:
    """Of step `number`, which is made again."""
    world, accumulation = trainer.world, trainer.accumulation
    trainer.state.step = number
    rows = micro_batch_loader(trainer.micro_batches, number * accumulation, (number + 1) * accumulation, workers=0)
    with CountFlops() as count:
        trainer.train_step(iter(rows))
    return world.all_reduce_sum(torch.tensor([float(count.flops)], dtype=torch.float64, device=world.device)).item()
