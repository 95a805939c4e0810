"""Peak anonymous memory of an export of a whole model: `python -m tests.benchmarks.export_memory --vocabulary 60000`.

The run is made up: a Janus of one wide layer, whose embedding and head are most of it, and a checkpoint of random masters in
the slices of `--ranks`. Weights that the operating system can read again from a file (page cache) are not anonymous.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from megaunigame.checkpoint.manifest import TRAIN_STATE, Manifest
from megaunigame.checkpoint.saved_learner import DESCRIPTION, FILE, as_json
from megaunigame.checkpoint.step_folders import publish
from megaunigame.engine.optimizer_slices import MASTER, Layout
from megaunigame.models.janus import Janus
from megaunigame.storage.pending import PendingFile
from megaunigame.tools.exporting import export
from tests.benchmarks.recording import Table, run
from tests.multi_process.tiny_run import TEXTS, VOCABULARY, write_recipe
from tests.tiny import write_tiny

WIDTH = 2048
HEADS = {"num_attention_heads": 16, "num_key_value_heads": 16}
GB = 1e9


def write_run(home: Path, vocabulary: int, ranks: int) -> tuple[int, int]:
    """A model folder and a run folder with a checkpoint. Bytes of the whole and of its largest tensor, in float32."""
    text = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 1, "vocab_size": vocabulary, **HEADS}
    write_tiny("janus", home / "model", TEXTS, VOCABULARY, text_config=text)
    partial = home / "run" / "checkpoints" / "saving-step-00000001.0"
    partial.mkdir(parents=True)
    write_recipe(home / "run" / "recipe.yaml", home)
    weights = Janus.weights(str(home / "model"))
    trained = {name: tuple(weights.shape(name)) for name in sorted(weights.names()) if "language_model" in name}
    layouts = {name: Layout(shape, 0, -(-torch.Size(shape).numel() // ranks)) for name, shape in trained.items()}
    files = [
        PendingFile(DESCRIPTION, content=as_json(ranks, 0, layouts).encode()),
        PendingFile(TRAIN_STATE, content=b'{"step": 1}'),
    ]
    written = [file.write(partial) for file in files]
    for rank in range(ranks):
        slices = {f"{MASTER}/{name}": torch.rand(len(layout.of_rank(rank))) for name, layout in layouts.items()}
        written.append(PendingFile(FILE.format(rank), slices).write(partial))
    publish(partial, Manifest(1, ranks, "", {file.name: file for file in written}), 1)
    largest = 4 * max(layout.numel for layout in layouts.values())
    size = 4 * sum(layout.numel for layout in layouts.values())
    return size, largest


def anonymous() -> int:
    """Bytes of this process that are in memory and not of a file."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return 1024 * int(line.split()[1])


def export_here(home: Path) -> None:
    """Export in this process; a thread looks at its memory every millisecond."""
    before, peak, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], anonymous())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    began = time.perf_counter()
    export(home / "run", home / "out")
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    print("measured", json.dumps([peak[0] - before, seconds]), flush=True)


def measure(options: argparse.Namespace) -> list[Table]:
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        sizes = write_run(Path(folder), options.vocabulary, options.ranks)
        command = [sys.executable, "-m", "tests.benchmarks.export_memory", "--rank", folder]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    line = next(line for line in said.splitlines() if line.startswith("measured"))
    peak, seconds = json.loads(line.partition(" ")[2])
    columns = ["checkpoint, GB", "largest weight in float32, GB", "anonymous memory of the export, GB", "seconds"]
    return [Table(columns, [[*(size / GB for size in (*sizes, peak)), seconds]])]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--vocabulary", type=int, default=60_000, help="rows of the embedding, 8 KB each in float32")
    made.add_argument("--ranks", type=int, default=2, help="that saved the checkpoint")
    made.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    return made


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        export_here(Path(sys.argv[2]))
    else:
        run(parser(), measure)
