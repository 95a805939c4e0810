"""Does a teacher have to wait for files and pictures? `python -m tests.benchmarks.annotate`.

A teacher that only sleeps stands for a GPU: a fixed time per picture, during which the processor is free. Printed are,
as medians over rounds of one run, pictures per second, the share of all time that the teacher works (the rest is reading,
decoding, encoding and writing that the teacher did not hide), and the processor's time per picture for all of that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_prep.annotator import Annotator
from data_prep.shard_writer import Job
from data_prep.teachers.base import Machine, Prediction, Teacher
from megaunigame.data.decode import Sample
from megaunigame.data.shards.index import ShardIndex
from tests.benchmarks.loader import SIDE, photograph, timed
from tests.benchmarks.recording import Cell, Table, run
from tests.data.shard_files import write_shards
from tests.data_prep.stored import write_whole
from tests.data_prep.toy_sets import TALK


class Sleeper(Teacher):
    tasks = ("depth", "segmentation")

    @dataclass
    class Config:
        milliseconds: float = 0.0
        """Per picture."""

    def __init__(self, task: str, config: Config, machine: Machine):
        self._seconds = config.milliseconds / 1000
        if task == "depth":
            noise = np.random.default_rng(0).normal(0, 0.002, (SIDE, SIDE))
            self._answer = (np.linspace(0, 1, SIDE)[:, None] + noise).astype(np.float32)
        else:
            blocks = np.random.default_rng(0).integers(0, 50, (12, 12))
            self._answer = np.kron(blocks, np.ones((SIDE // 12, SIDE // 12))).astype(np.uint8)

    @property
    def identity(self) -> dict[str, Any]:
        return {"seconds": self._seconds}

    def predict(self, samples: Sequence[Sample]) -> list[Prediction]:
        time.sleep(self._seconds * len(samples))
        return [self._answer] * len(samples)


def source_fields(number: int) -> dict[str, bytes]:
    fields = photograph(number)
    return {"jpg": fields["jpg"], "json": json.dumps({"conversations": TALK}).encode()}


def one_round(index: ShardIndex, milliseconds: float, threads: int, target_size: int) -> tuple[float, float, float]:
    """Pictures per second, the teachers' share of the time from the first read to the manifest, processor ms per picture."""
    machine = Machine(torch.device("cpu"), torch.float32, 8)
    half = Sleeper.Config(milliseconds / 2)
    teachers: dict[str, Teacher] = {task: Sleeper(task, half, machine) for task in Sleeper.tasks}
    annotator = Annotator(
        index,
        teachers,
        batch=machine.batch,
        threads=threads,
        target_size=target_size,
        existing="refuse",
        progress=lambda shard, samples: None,
        failed=lambda failure: None,
    )
    with tempfile.TemporaryDirectory() as folder:
        job = Job(Path(folder), "out", {}, len(index.sizes), annotator.shard)
        taken_cpu, taken = timed(lambda: write_whole(job))
    rate, share = annotator.images / taken, sum(annotator.teacher_seconds.values()) / taken
    return rate, share, 1000 * taken_cpu / annotator.images


def measure(options: argparse.Namespace) -> list[Table]:
    torch.set_num_threads(1)
    lines: list[list[Cell]] = []
    with tempfile.TemporaryDirectory() as name:
        size = options.samples // options.shards
        index = ShardIndex.open(write_shards(Path(name), [size] * options.shards, source_fields))
        for target_size in options.target_size:
            for milliseconds in options.milliseconds:
                rounds = [one_round(index, milliseconds, options.threads, target_size) for _ in range(options.rounds)]
                medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
                lines.append([target_size or SIDE, milliseconds, *medians])
    columns = ["target", "teacher, ms per picture", "pictures a second", "share of the time in the teacher"]
    return [Table([*columns, "processor, ms per picture"], lines)]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--samples", type=int, default=500)
    made.add_argument("--shards", type=int, default=1)
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--threads", type=int, default=4)
    made.add_argument("--milliseconds", type=int, nargs="+", default=[0, 25, 50], help="teacher, per picture")
    made.add_argument("--target-size", type=int, nargs="+", default=[0, 192])
    return made


if __name__ == "__main__":
    run(parser(), measure)
