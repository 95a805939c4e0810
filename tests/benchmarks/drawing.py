"""Collectives and seconds of a drawn picture on two ranks under ZeRO-3, with weights gathered in every call, once, and divided:
`python -m tests.benchmarks.drawing`.

The model is the tiny Janus that ships with the project: 64 codes a picture, in float32. Two batches of each rank.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import torch.distributed as dist

from megaunigame.config import EACH_CALL, ONCE, TENSOR_PARALLEL
from megaunigame.parallel.ranks import Ranks, start_world
from tests.multi_process.launcher import REPOSITORY, run_ranks
from tests.multi_process.programs import trainer_of
from tests.multi_process.tiny_run import write_data, write_pictures

MODEL = REPOSITORY / "megaunigame" / "tiny_world" / "weights" / "janus"
PICTURES, BATCH, RANKS = 16, 4, 2


def measure(home: Path, world: Ranks) -> None:
    suite = {"shards": str(home / "pictures"), "limit": PICTURES, "batch": BATCH, "guidance": 3.0}
    for gather in (EACH_CALL, ONCE, TENSOR_PARALLEL):
        evaluation = {"suites": {"generation": suite}, "gather": gather}
        trainer = trainer_of(gather, home, world, evaluation=evaluation, model={"path": str(MODEL), "max_length": 160})
        trainer.parts.evaluate(trainer.learner, lambda line: None)  # opens connections
        calls, began = dist.group.WORLD._get_sequence_number_for_group(), time.perf_counter()
        trainer.parts.evaluate(trainer.learner, lambda line: None)
        seconds = time.perf_counter() - began
        calls = dist.group.WORLD._get_sequence_number_for_group() - calls
        if world.is_main:
            own = PICTURES / RANKS
            print(f"{gather}: {calls / own:.0f} collectives and {seconds / own:.2f} s for a picture of a rank", flush=True)


def main() -> None:
    if len(sys.argv) > 1:
        world = start_world(5)
        measure(Path(sys.argv[1]), world)
        world.close()
        os._exit(0)
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder) / "shards")
        write_pictures(Path(folder) / "pictures", PICTURES)
        said = run_ranks("tests.benchmarks.drawing", RANKS, folder, timeout=900)[0]
        print("\n".join(line for line in said.splitlines() if line.startswith((EACH_CALL, ONCE, TENSOR_PARALLEL))))


if __name__ == "__main__":
    main()
