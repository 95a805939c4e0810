"""How long a save holds the training, and how long it takes until it is complete, in one process under ZeRO-3:
`python -m tests.benchmarks.saves --megabytes 600`.

Between the asks of `advance` stands a matrix product, as a step would; "held" is what `perf/save_pause_seconds` reports. The
files are flushed to the disk of `--folder`, so its speed is in the second number.
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
from megaunigame.parallel.ranks import start_world

WIDTH = 1024
BYTES_OF_AN_ELEMENT = 12
"""Of a checkpoint: master weight and two moments in float32."""


def learner_of(megabytes: float) -> Learner:
    """Square layers, updated once, so that there are moments."""
    world = start_world(1)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=600, help="of the checkpoint")
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    options = parser.parse_args()
    learner, work = learner_of(options.megabytes), torch.randn(256, 256)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        manager = CheckpointManager(Path(folder), 1, learner.world)
        for number in range(1, options.saves + 1):
            manager.begin(learner, {"step": number}, number)
            done = []
            while not done:
                work @ work
                time.sleep(0.01)
                manager.advance()
                done = manager.taken()
            print(done[0], flush=True)
        started = time.perf_counter()
        manager.find("auto")
        print(f"hashes of all files checked in {time.perf_counter() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
