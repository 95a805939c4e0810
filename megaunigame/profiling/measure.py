"""Runs a few steps of the real trainer on synthetic rows and measures them."""

from __future__ import annotations

import dataclasses
import gc
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from megaunigame.config import CheckpointConfig, EvaluationConfig, Recipe
from megaunigame.data.loading.loader import MicroBatchLoader
from megaunigame.data.loading.stream import MicroBatch
from megaunigame.data.sources.base import Stream
from megaunigame.data.synthetic import SyntheticMicroBatches, SyntheticSource
from megaunigame.engine.memory_plan import bytes_per_rank
from megaunigame.engine.peak_memory import peak_memory
from megaunigame.errors import ConfigError
from megaunigame.monitoring import names
from megaunigame.parallel.mesh import Mesh
from megaunigame.parallel.ranks import Ranks
from megaunigame.profiling.operations import count_flops
from megaunigame.profiling.planned import planned_bytes
from megaunigame.step.phases import PHASES, PhaseTimer
from megaunigame.training.trainer import Trainer

SETTLED = 3
"""Warm-up steps after which the cost of a step no longer changes."""


@dataclass(frozen=True)
class Measurement:
    """The steps of one recipe: means over the steps unless stated otherwise."""

    name: str
    steps: int
    warmup: int
    world_size: int
    device: str
    seconds: float
    """Of a step, median over the steps."""
    seconds_range: tuple[float, float]
    """Of the shortest and of the longest step."""
    phases: dict[str, float]
    """Phase -> seconds, mean over steps and ranks."""
    tokens: float
    """Of a step, all ranks and passes, padding and dummy rows included."""
    tokens_per_second: float
    """Of all steps together."""
    useful_tokens_per_second: float
    flops: float
    """Model FLOPs of a step, all ranks."""
    mfu: float | None
    """Of all steps together; None: the peak of the device is unknown."""
    peak_memory_bytes: float
    """The rank with the most, in any of the steps."""
    states_bytes: int
    """Weights, gradients and optimizer of a rank, as planned; activations come on top."""
    planned_bytes: int | None
    """All that a rank holds, as megaunigame plan plans it; None: not planned."""
    gathered_bytes: float
    """Weights that a rank gathered in a step."""
    passes: float
    """Forwards through the language model in a step of a rank."""
    learner_rows: int
    """Rows of the learner's passes in a step, all ranks."""


class SyntheticTrainer(Trainer):
    """The trainer on synthetic rows."""

    micro_batches_of = SyntheticMicroBatches

    def open_streams(self) -> dict[str, Stream]:
        return {name: Stream(name, SyntheticSource(self.recipe.seed)) for name in self.plan.streams}


def measure(recipe: Recipe, world: Ranks, *, steps: int, warmup: int, out: Path) -> Measurement:
    """Make `warmup` steps, then `steps` measured ones, then one of each kind to count. Writes no checkpoint. Collective."""
    if steps < 1 or warmup < 1:
        raise ConfigError(f"--steps and --warmup must be at least 1; got {steps} and {warmup}.")
    on_gpu = world.device.type == "cuda"
    planned = planned_bytes(recipe, world.size) if on_gpu and world.is_main else None
    timer = PhaseTimer(world.device)
    trainer, micro_batches = synthetic_trainer(recipe, world, steps=warmup + steps, out=out, phases=timer)
    for _ in range(warmup):
        trainer.train_step(micro_batches)
    timer.pop()
    metrics, phases = [], []
    for _ in range(steps):
        metrics.append(trainer.train_step(micro_batches))
        phases.append(timer.pop())
    peak = _peak(world, metrics)
    flops = count_flops(trainer, metrics, first=warmup)
    measured = _summary(recipe.name, trainer, metrics, phases, flops, warmup=warmup, peak=peak, planned=planned)
    del trainer, micro_batches
    gc.collect()  # the next model needs the memory of this one
    if on_gpu:
        torch.cuda.empty_cache()
    return measured


def synthetic_trainer(
    recipe: Recipe, world: Ranks, *, steps: int, out: Path, phases: PhaseTimer | None = None
) -> tuple[Trainer, Iterator[MicroBatch]]:
    """The trainer of a recipe, without checkpoints and evaluation, and synthetic rows for `steps` steps. Collective."""
    recipe = dataclasses.replace(
        recipe,
        output=str(out),
        # Synthetic rows are cut to the longest legal ones.
        loader=dataclasses.replace(recipe.loader, max_dummy_fraction=1.0, max_cut_fraction=1.0),
        checkpoint=CheckpointConfig(resume="never"),
        evaluation=EvaluationConfig(),
        schedule=dataclasses.replace(recipe.schedule, steps=max(steps, recipe.schedule.steps), epochs=0.0, epochs_of=""),
    )
    mesh = Mesh.of(world, recipe.engine.sequence_ranks, recipe.engine.timeout_minutes)
    trainer = SyntheticTrainer(recipe, mesh, phases)
    trainer.dry_run()
    last = steps * trainer.accumulation
    return trainer, iter(MicroBatchLoader(trainer.micro_batches, 0, last, recipe.loader.workers, recipe.loader.prefetch))


def _peak(world: Ranks, metrics: list[dict[str, float]]) -> float:
    """Most bytes of any rank in the steps that reported `metrics`: each has reported the step before it."""
    last = torch.tensor([peak_memory(world.device)], dtype=torch.float64, device=world.device)
    return max([world.all_reduce_max(last).item(), *(step[names.PERF_PEAK_MEMORY_BYTES] for step in metrics[1:])])


def _summary(
    name: str,
    trainer: Trainer,
    metrics: list[dict[str, float]],
    phases: list[dict[str, float]],
    flops: list[float],
    *,
    warmup: int,
    peak: float,
    planned: int | None,
) -> Measurement:
    world = trainer.world
    seconds = [step[names.PERF_STEP_SECONDS] for step in metrics]
    tokens = [step[names.PERF_TOKENS_PER_SECOND] * step[names.PERF_STEP_SECONDS] for step in metrics]
    useful = [step[names.PERF_USEFUL_TOKENS_PER_SECOND] * step[names.PERF_STEP_SECONDS] for step in metrics]
    of_phases = torch.tensor([statistics.fmean(step[phase] for step in phases) for phase in PHASES], dtype=torch.float64)
    mean = (world.all_reduce_sum(of_phases.to(world.device)) / world.size).tolist()
    device_peak = trainer.stepper.performance.peak
    return Measurement(
        name=name,
        steps=len(metrics),
        warmup=warmup,
        world_size=world.size,
        device=torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU",
        seconds=statistics.median(seconds),
        seconds_range=(min(seconds), max(seconds)),
        phases=dict(zip(PHASES, mean, strict=True)),
        tokens=statistics.fmean(tokens),
        tokens_per_second=sum(tokens) / sum(seconds),
        useful_tokens_per_second=sum(useful) / sum(seconds),
        flops=statistics.fmean(flops),
        mfu=None if device_peak is None else sum(flops) / sum(seconds) / (device_peak * world.size),
        peak_memory_bytes=peak,
        states_bytes=sum(bytes_per_rank(trainer.learner.module, world.size, trainer.learner.ema is not None).values()),
        planned_bytes=planned,
        gathered_bytes=statistics.fmean(step[names.PERF_ALLGATHER_BYTES] for step in metrics),
        passes=statistics.fmean(step[names.PERF_PASSES] for step in metrics),
        learner_rows=trainer.plan.rows_per_micro_step() * trainer.accumulation * trainer.mesh.data.size,
    )
