"""Time, bytes and memory of loading a checkpoint under ZeRO-3: `python -m tests.benchmarks.loading --gigabytes 4 --ranks 2`.

A synthetic bfloat16 checkpoint of square matrices, in files of about half a GB, is written to a temporary folder and loaded by
gloo ranks on one machine, partitioned. Memory is what the kernel counts as anonymous (RssAnon, looked at every 5 ms), above
what the process had before the model was built; pages of files do not count. The bar is twice the partition plus 256 MB.
Reading is warm: the files were just written.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from tests.benchmarks.recording import Cell, Table, at_most, run
from tests.multi_process.launcher import run_ranks

WIDTH, PER_FILE = 4096, 16
BAR = 256e6
PEAK = "anonymous memory above the start, MB"
CONFIG: dict[str, Any] = {
    "train_batch_size": 1,
    "train_micro_batch_size_per_gpu": 1,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 3},
}


def write_checkpoint(folder: Path, gigabytes: float) -> int:
    """How many matrices were written."""
    layers = max(1, round(gigabytes * 1e9 / (2 * WIDTH**2)))
    drawn_once = torch.randn(WIDTH, WIDTH, dtype=torch.bfloat16)
    for first in range(0, layers, PER_FILE):
        numbers = range(first, min(first + PER_FILE, layers))
        drawn = {f"{number}.weight": drawn_once.roll(number) for number in numbers}
        save_file(drawn, folder / f"part{first:05d}.safetensors")
    return layers


def anonymous() -> int:
    """Bytes of this process that no file has."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1])


class Peak(threading.Thread):
    """The most of `anonymous` while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.most = anonymous()
        self.ended = threading.Event()
        self.start()

    def run(self) -> None:
        while not self.ended.wait(0.005):
            self.most = max(self.most, anonymous())

    def above(self) -> int:
        self.ended.set()
        self.join()
        return max(self.most, anonymous()) - self.before


def rank(folder: Path, layers: int) -> None:
    from megaunigame.engine.loading import load_weights
    from megaunigame.engine.partitioning import PartitionedParameters
    from megaunigame.models.weights.renamed import RenamedWeights, StoredTensor
    from megaunigame.models.weights.tensor_files import TensorFiles
    from megaunigame.parallel.ranks import start_world

    world = start_world(30)
    files = TensorFiles(sorted(folder.glob("*.safetensors")))
    weights = RenamedWeights(files, {f"{number}.weight": StoredTensor(f"{number}.weight") for number in range(layers)})
    config = {**CONFIG, "train_batch_size": world.size}
    peak, began = Peak(), time.perf_counter()
    with PartitionedParameters(config):
        model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)))
    built = time.perf_counter()
    load_weights(model, weights, world, print)
    partition = sum(parameter.ds_tensor.nbytes for parameter in model.parameters())  # type: ignore[attr-defined]
    done = {"partition": partition, "above": peak.above(), "build": built - began, "load": time.perf_counter() - built}
    print("measured", json.dumps(done), flush=True)
    world.close()


def measure(options: argparse.Namespace) -> list[Table]:
    with tempfile.TemporaryDirectory() as name:
        layers = write_checkpoint(Path(name), options.gigabytes)
        said = run_ranks("tests.benchmarks.loading", options.ranks, "--rank", name, layers, timeout=3600)
    lines: list[list[Cell]] = []
    for number, text in enumerate(said):
        told = json.loads(next(line for line in text.splitlines() if line.startswith("measured")).partition(" ")[2])
        bar = round((2 * told["partition"] + BAR) / 1e6)
        megabytes = [round(told[key] / 1e6) for key in ("partition", "above")]
        lines.append([number, *megabytes, at_most(bar, PEAK), told["build"], told["load"]])
    return [Table(["rank", "partition, MB", PEAK, "aim", "built in, s", "loaded in, s"], lines)]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--gigabytes", type=float, default=4.0)
    made.add_argument("--ranks", type=int, default=2)
    return made


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        rank(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        run(parser(), measure)
