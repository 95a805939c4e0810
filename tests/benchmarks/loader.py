"""Rates of the data path, and the time to open a resume deep inside a large set: `python -m tests.benchmarks.loader`.

Prints medians over several rounds, files in the page cache. The loader is held against pure decoding in CPU time, which
other jobs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import webdataset

from megaunigame.data.decode import decode_sample
from megaunigame.data.shards import ShardIndex
from megaunigame.data.stream import Cursor, MicroBatches, Stream, micro_batch_loader
from megaunigame.passes import UNDERSTAND, RowRequest, StepPlan
from tests.data.shard_files import NumberCollator, NumberRows, encoded, write_shards

SIDE = 384


def photograph(number: int) -> dict[str, bytes]:
    """Fields of one sample with pictures that compress about as photographs do."""
    rng = np.random.default_rng(number)
    smooth = np.kron(rng.integers(0, 200, (SIDE // 16, SIDE // 16, 3)), np.ones((16, 16, 1)))
    rgb = (smooth + rng.integers(0, 12, (SIDE, SIDE, 3))).astype(np.uint8)
    depth = (np.linspace(0, 60000, SIDE)[:, None] + rng.integers(0, 500, (SIDE, SIDE))).astype(np.uint16)
    ids = np.kron(rng.integers(0, 50, (8, 8)), np.ones((SIDE // 8, SIDE // 8))).astype(np.uint8)
    meta = {"number": number, "conversations": []}
    return {
        "json": json.dumps(meta).encode(),
        "jpg": encoded(rgb, "JPEG"),
        "depth.png": encoded(depth),
        "seg.png": encoded(ids, palette=256),
    }


def median_rate(work: Callable[[], int], rounds: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Median over rounds of (samples returned by `work`) per second of `clock`."""
    rates = []
    for _ in range(rounds):
        start = clock()
        samples = work()
        rates.append(samples / (clock() - start))
    return statistics.median(rates)


def synthetic_set(folder: Path, shards: int, samples: int) -> None:
    """A manifest of `shards` x `samples`, with an index for every shard; the tars are holes of the right size."""
    spans = [{"key": f"{i:07d}", "fields": {"json": [512 + 2048 * i, 900]}} for i in range(samples)]
    content = json.dumps({"version": 1, "samples": spans}).encode()
    rows = []
    for shard in range(shards):
        path = folder / f"data-{shard:06d}.tar"
        with open(path, "wb") as file:
            file.truncate(2048 * samples + 1024)
        if shard == 0:
            index = path.with_suffix(".idx.json")
            index.write_bytes(content)
        else:
            os.link(index, path.with_suffix(".idx.json"))
        digest = hashlib.sha256(content).hexdigest()
        rows.append({"file": path.name, "samples": samples, "bytes": path.stat().st_size, "index_sha256": digest})
    (folder / "dataset.json").write_text(json.dumps({"version": 1, "fields": ["json"], "shards": rows}))


def rates(samples: int, rounds: int, workers: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = write_shards(Path(name), [samples // 4] * 4, photograph)
        index = ShardIndex.open(folder)
        places = [(shard, i) for shard, n in enumerate(index.sizes) for i in range(n)]
        np.random.default_rng(0).shuffle(places)
        raw = [index.read(*place) for place in places]
        size = sum(len(data) for _, fields in raw for data in fields.values()) / len(raw) / 1024
        print(f"{len(raw)} samples of {SIDE}x{SIDE}, {size:.0f} KiB each (jpg, 16-bit depth, palette ids, json)")

        def tar_reader() -> int:
            return sum(1 for _ in webdataset.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=False))

        def raw_reads() -> int:
            return sum(1 for place in places if index.read(*place))

        def decodes() -> int:
            return sum(1 for key, fields in raw if decode_sample(key, fields))

        def through_loader(processes: int) -> Callable[[], int]:
            plan = StepPlan((RowRequest("answer", UNDERSTAND, "s", 8),))
            streams = {"s": Stream.open("s", folder, seed=0)}
            dataset = MicroBatches(plan, {"answer": NumberRows()}, streams, NumberCollator(), 1, 0, 1, 0, 0)
            return lambda: sum(len(b.inputs[UNDERSTAND].keys) for b in micro_batch_loader(dataset, 0, len(raw) // 8, processes))

        print(f"webdataset tar reader, raw        {median_rate(tar_reader, rounds):9,.0f} samples/s")
        print(f"this index, raw, shuffled         {median_rate(raw_reads, rounds):9,.0f} samples/s")
        print(f"micro-batches, {workers} workers          {median_rate(through_loader(workers), rounds):9,.0f} samples/s")
        pairs = [[median_rate(work, 1, time.process_time) for work in (decodes, through_loader(0))] for _ in range(rounds)]
        decode, loader = (statistics.median(column) for column in zip(*pairs, strict=True))
        share = statistics.median(loader / decode for decode, loader in pairs)
        print(f"decode only                       {decode:9,.0f} samples/cpu-s")
        print(f"micro-batches, 0 workers          {loader:9,.0f} samples/cpu-s, {share:.2f} of decode only")


def resume(rounds: int) -> None:
    shards, samples, position = 1200, 10_000, 11_234_567
    with tempfile.TemporaryDirectory() as name:
        synthetic_set(Path(name), shards, samples)
        index_hash = ShardIndex.open(name).hash

        def first_read() -> int:
            stream = Stream.open("s", name, seed=0, cursor=Cursor(0, position, 8, index_hash))
            stream.index.read(*stream.place(position, 0))
            return 1

        seconds = 1 / median_rate(first_read, rounds)
        print(f"resume at sample {position:,} of {shards * samples:,}: open, locate, first read {seconds:.3f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rates(arguments.samples, arguments.rounds, arguments.workers)
    resume(arguments.rounds)


if __name__ == "__main__":
    main()
