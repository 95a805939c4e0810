"""How long a save holds the training, and how long it takes until it is complete, in one process under ZeRO-3:
`python -m tests.benchmarks.saves --megabytes 12.6 600`.

Between the asks of `advance` stands a matrix product, as a step would; "held" is what `perf/save_pause_seconds` reports. The
files are flushed to the disk of `--folder`, so its speed is in the time until a save is complete.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import nn

from megaunigame.checkpoint.manager import CheckpointManager
from megaunigame.engine.zero3 import Learner
from megaunigame.parallel.ranks import Ranks, start_world
from tests.benchmarks.recording import Cell, Table, run, spread

WIDTH = 1024
BYTES_OF_AN_ELEMENT = 12
"""Of a checkpoint: master weight and two moments in float32."""


def learner_of(megabytes: float, world: Ranks) -> Learner:
    """Square layers, updated once, so that there are moments."""
    layers = max(1, round(megabytes * 1e6 / BYTES_OF_AN_ELEMENT / WIDTH**2))
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)))
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3},
        "bf16": {"enabled": True},
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    engine.backward(engine(torch.randn(1, WIDTH, dtype=torch.bfloat16)).float().sum())
    engine.step()
    return Learner(engine, world, 3, [list(model.parameters())])


def saved(megabytes: float, options: argparse.Namespace, world: Ranks) -> list[Cell]:
    """A line of the table."""
    learner, work = learner_of(megabytes, world), torch.randn(256, 256)
    saves = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        manager = CheckpointManager(Path(folder), 1, world)
        for number in range(1, options.saves + 1):
            manager.begin(learner, {"step": number}, number)
            while not (taken := manager.taken()):
                work @ work
                time.sleep(0.01)
                manager.advance()
            saves += taken
        started = time.perf_counter()
        manager.find("auto")
        checked = time.perf_counter() - started
    paused, complete = spread(save.paused for save in saves), spread(save.seconds for save in saves)
    return [saves[0].bytes / 1e6, len(saves), paused, complete, checked]


def measure(options: argparse.Namespace) -> list[Table]:
    world = start_world(1)
    lines = [saved(megabytes, options, world) for megabytes in options.megabytes]
    return [Table(["checkpoint, MB", "saves", "training paused, s", "until complete, s", "hashes checked in, s"], lines)]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--megabytes", type=float, nargs="+", default=[600.0], help="of the checkpoint")
    made.add_argument("--saves", type=int, default=3)
    made.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    return made


if __name__ == "__main__":
    run(parser(), measure)
