"""Rank program of `unigame.py` and `unimrg.py`: steps of several trainers in turn, in one process per rank.

python -m tests.benchmarks.step_ranks HOME     (HOME/blocks.json in, HOME/measured.json out)

Every trainer of a block is alive at once: an engine keeps its partitioned weights, hooks and order of gathers to itself, and
between two steps nothing is gathered or in flight. Steps go A B C D A B C D, so that a slow spell of the machine hits all.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import torch.distributed as dist

from megaunigame.config import load_recipe
from megaunigame.data.loading.loader import MicroBatchLoader
from megaunigame.data.loading.stream import MicroBatch
from megaunigame.engine.model_flops import CountFlops
from megaunigame.monitoring import names
from megaunigame.objectives.unigame import names as unigame_names
from megaunigame.parallel.mesh import Mesh
from megaunigame.parallel.ranks import Ranks, start_world
from megaunigame.training.trainer import Trainer

MEASURED = (names.PERF_STEP_SECONDS, names.PERF_PASSES, names.PERF_ALLGATHER_BYTES)
CPU_SECONDS, REPLAYED = "cpu_seconds", unigame_names.BUFFER_REPLAYED
FLOPS = "flops"
"""Operations that a step computes, recomputed ones too: of the last step of the warm-up."""


class Case:
    """One way to train, stepping on its own data."""

    def __init__(self, described: dict[str, Any], world: Ranks):
        self.name, self.every, self.warmup = described["name"], described["every"], described["warmup"]
        self.trainer = Trainer(load_recipe(described["recipe"], described["overrides"]), Mesh.of(world))
        steps = self.trainer.recipe.schedule.steps * self.trainer.accumulation
        self.batches: Iterator[MicroBatch] = iter(MicroBatchLoader(self.trainer.micro_batches, 0, steps, workers=0))
        self.flops = 0

    def warm_up(self, world: Ranks) -> None:
        for number in range(self.warmup):
            if number < self.warmup - 1:
                self.step(world)
                continue
            with CountFlops() as count:
                self.step(world)
            self.flops = count.flops + count.recomputed

    def step(self, world: Ranks) -> dict[str, float]:
        world.barrier()  # a rank still busy with the step before is not this one's cost
        started = time.process_time()
        metrics = self.trainer.train_step(self.batches)
        measured = {name: metrics[name] for name in MEASURED}
        measured |= {CPU_SECONDS: time.process_time() - started, FLOPS: self.flops}
        # A case without a buffer replays nothing.
        return measured | {REPLAYED: metrics.get(unigame_names.BUFFER_REPLAYED, 0.0)}


def measure(block: dict[str, Any], world: Ranks, progress: TextIO) -> dict[str, dict[int, dict[str, float]]]:
    """Name of a case -> round -> what its step of that round measured. Rank 0 notes every step in `progress`."""
    cases = [Case(described, world) for described in block["cases"]]
    for case in cases:
        case.warm_up(world)
    measured: dict[str, dict[int, dict[str, float]]] = {case.name: {} for case in cases}
    for number in range(block["rounds"]):
        for case in cases:
            if number % case.every == 0:
                measured[case.name][number] = case.step(world)
                if world.is_main:
                    seconds = measured[case.name][number][names.PERF_STEP_SECONDS]
                    print(f"{block['title']}, round {number + 1}/{block['rounds']}: {case.name} {seconds:.2f} s", file=progress)
    return measured


def main(home: Path) -> None:
    # The checks of the test launcher put a comparison of all ranks before every collective.
    dist.set_debug_level(dist.DebugLevel.OFF)
    world = start_world(timeout_minutes=30)
    blocks = json.loads((home / "blocks.json").read_text())
    with (home / "progress.log").open("a", buffering=1) as progress:
        measured = [measure(block, world, progress) for block in blocks]
    if world.is_main:
        (home / "measured.json").write_text(json.dumps(measured))
    world.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
