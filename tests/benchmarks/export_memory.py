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
from tests.multi_process.tiny_run import TEXTS, VOCABULARY, write_recipe
from tests.tiny import write_tiny

WIDTH = 2048
HEADS = {"num_attention_heads": 16, "num_key_value_heads": 16}
GB = 1e9


def write_run(home: Path, vocabulary: int, ranks: int) -> None:
    """A model folder and a run folder with a checkpoint."""
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
    print(f"checkpoint {size / GB:.2f} GB of {ranks} ranks, largest tensor {largest / GB:.2f} GB in float32", flush=True)


def anonymous() -> int:
    """Bytes of this process that are in memory and not of a file."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return 1024 * int(line.split()[1])


def measure(home: Path) -> None:
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
    print(f"peak of the export {(peak[0] - before) / GB:.2f} GB, {seconds:.0f} s", flush=True)
    total = sum(tensor.stat().st_size for tensor in (home / "out").glob("*.safetensors"))
    print(json.dumps({"peak": peak[0] - before, "before": before, "written": total}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocabulary", type=int, default=60_000, help="rows of the embedding, 8 KB each in float32")
    parser.add_argument("--ranks", type=int, default=2, help="that saved the checkpoint")
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        write_run(Path(folder), options.vocabulary, options.ranks)
        subprocess.run([sys.executable, "-m", "tests.benchmarks.export_memory", "--measure", folder], check=True)


if __name__ == "__main__":
    main()
