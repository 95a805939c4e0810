"""Runs a few steps of the real trainer on synthetic rows and measures them."""

from __future__ import annotations

import dataclasses
import gc
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch

from megaunigame.config import CheckpointConfig, EvaluationConfig, Recipe
from megaunigame.data.source import Stream
from megaunigame.data.stream import micro_batch_loader
from megaunigame.data.synthetic import SyntheticMicroBatches, synthetic_streams
from megaunigame.distributed import World
from megaunigame.engine.memory_plan import bytes_per_rank
from megaunigame.errors import ConfigError
from megaunigame.monitoring import names
from megaunigame.phases import PHASES, PhaseTimer
from megaunigame.trainer import Trainer


@dataclass(frozen=True)
class Measured:
    """The steps of one recipe. Seconds of a phase are means over the steps and ranks; the rest are medians over the steps."""

    name: str
    steps: int
    warmup: int
    world_size: int
    device: str
    seconds: float
    """Of a step."""
    phases: dict[str, float]
    """Phase -> seconds."""
    tokens: float
    """Of a step, all ranks and passes; padding and dummy rows are in it."""
    tokens_per_second: float
    useful_tokens_per_second: float
    flops: float
    """Model FLOPs of a step, all ranks."""
    mfu: float | None
    """None: the peak of the device is not known."""
    peak_memory_bytes: float
    """The rank with the most."""
    planned_bytes: dict[str, int]
    """Model states of a rank, as planned; activations come on top."""
    gathered_bytes: float
    """Weights that a rank gathered in a step."""
    passes: float
    """Forwards through the language model in a step of a rank."""
    learner_rows: int
    """Rows of the learner's passes in a step, all ranks."""


class SyntheticTrainer(Trainer):
    """The trainer, its rows made up."""

    micro_batches_of = SyntheticMicroBatches

    def open_streams(self) -> dict[str, Stream]:
        return synthetic_streams(self.plan.streams, self.recipe.seed)


def measure(recipe: Recipe, world: World, *, steps: int, warmup: int, out: Path) -> Measured:
    """`warmup` steps, the first of which is counted, then `steps` measured ones. Leaves no checkpoint. Collective."""
    if steps < 1 or warmup < 1:
        raise ConfigError(
            f"--steps and --warmup must be at least 1; got {steps} and {warmup}. The first warm-up step is counted."
        )
    timer = PhaseTimer(world.device)
    trainer = SyntheticTrainer(_for_measuring(recipe, steps + warmup, out), world, timer)
    trainer.dry_run()
    last = (steps + warmup) * trainer.accumulation
    loader = micro_batch_loader(trainer.micro_batches, 0, last, recipe.loader.workers, recipe.loader.prefetch)
    micro_batches = iter(loader)
    for _ in range(warmup):
        trainer.train_step(micro_batches)
    timer.taken()
    metrics, phases = [], []
    for _ in range(steps):
        metrics.append(trainer.train_step(micro_batches))
        phases.append(timer.taken())
    measured = _summary(recipe.name, trainer, metrics, phases, warmup)
    del trainer, loader, micro_batches
    gc.collect()  # the next model needs the room of this one
    if world.device.type == "cuda":
        torch.cuda.empty_cache()
    return measured


def synthetic_steps(recipe: Recipe, world: World, *, steps: int, out: Path) -> tuple[Trainer, list[dict[str, float]]]:
    """The trainer of a recipe after `steps` steps on synthetic rows, and their metrics. Collective."""
    trainer = SyntheticTrainer(_for_measuring(recipe, steps, out), world)
    trainer.dry_run()
    loader = micro_batch_loader(trainer.micro_batches, 0, steps * trainer.accumulation, 0, recipe.loader.prefetch)
    micro_batches = iter(loader)
    return trainer, [trainer.train_step(micro_batches) for _ in range(steps)]


def _for_measuring(recipe: Recipe, steps: int, out: Path) -> Recipe:
    """The recipe without what a run leaves or resumes, and with a schedule that is long enough."""
    return dataclasses.replace(
        recipe,
        output=str(out),
        checkpoint=CheckpointConfig(resume="never"),
        evaluation=EvaluationConfig(),
        schedule=dataclasses.replace(recipe.schedule, steps=max(steps, recipe.schedule.steps)),
    )


def _summary(
    name: str, trainer: Trainer, metrics: list[dict[str, float]], phases: list[dict[str, float]], warmup: int
) -> Measured:
    world = trainer.world

    def median(metric: str) -> float:
        return statistics.median(step[metric] for step in metrics)

    seconds = torch.tensor([statistics.fmean(step[phase] for step in phases) for phase in PHASES], dtype=torch.float64)
    mean = (world.all_reduce_sum(seconds.to(world.device)) / world.size).tolist()
    tokens = statistics.median(step[names.PERF_TOKENS_PER_SECOND] * step[names.PERF_STEP_SECONDS] for step in metrics)
    return Measured(
        name=name,
        steps=len(metrics),
        warmup=warmup,
        world_size=world.size,
        device=torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU",
        seconds=median(names.PERF_STEP_SECONDS),
        phases=dict(zip(PHASES, mean, strict=True)),
        tokens=tokens,
        tokens_per_second=median(names.PERF_TOKENS_PER_SECOND),
        useful_tokens_per_second=median(names.PERF_USEFUL_TOKENS_PER_SECOND),
        flops=trainer.performance.flops.of(tokens) or 0.0,
        mfu=median(names.PERF_MFU) if trainer.performance.peak is not None else None,
        peak_memory_bytes=max(step[names.PERF_PEAK_MEMORY_BYTES] for step in metrics),
        planned_bytes=bytes_per_rank(trainer.learner.module, world.size, trainer.recipe.engine.precision),
        gathered_bytes=median(names.PERF_ALLGATHER_BYTES),
        passes=median(names.PERF_PASSES),
        learner_rows=trainer.plan.rows_per_micro_step() * trainer.accumulation * world.size,
    )
