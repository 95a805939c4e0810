"""Rates of the data path, and the time to open a resume deep inside a large set: `python -m tests.benchmarks.loader`.

Everything is measured in the same rounds, one after the other, and compared within its round; printed are medians. CPU
seconds count the process and its loader workers, and are what other jobs on the machine change least. Costs are
marginal: the difference between a long and a short run, so that starting processes is not in them. Files are in the page
cache.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import pickle
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import webdataset
from torch.utils.data import DataLoader

from megaunigame.config import StreamConfig
from megaunigame.data.decode import decode_sample
from megaunigame.data.loading.loader import MicroBatchLoader
from megaunigame.data.shards.index import ShardIndex
from megaunigame.data.sources.base import Cursor
from megaunigame.data.sources.opening import open_stream
from megaunigame.step.requests import UNDERSTAND, RowRequest, StepPlan
from megaunigame.step.rows import Row, UnderstandRow
from tests.benchmarks.recording import Cell, Table, at_least, run, spread
from tests.data.shard_files import NumberRows, encoded, number_batches, write_shards

SIDE = 384
ROWS = 8
"""Rows of a micro-batch."""
PLAN = StepPlan((RowRequest("answer", UNDERSTAND, "s", ROWS),))

TAR_READER = "raw, webdataset's tar reader"
RAW_READS = "raw, this index, shuffled"
DECODE = "every field, decoding alone"
DECODE_PARALLEL = "every field, decoding alone in as many processes"
LOADER = "every field, this loader"
WEBDATASET = "every field, webdataset + DataLoader"
STATEFUL = "every field, webdataset + StatefulDataLoader"
DECODE_IMAGE = "image, decoding alone"
LOADER_IMAGE = "image, this loader, targets stored next to it"

RATIO = "ratio"

Work = Callable[[int], object]
"""Puts that many samples through."""


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


class ImageRows:
    """Rows that need the image and no target."""

    def row(self, request: RowRequest, sample: object, rng: np.random.Generator) -> Row:
        return UnderstandRow([sample.image], [(str(sample.meta["number"]), "0")])


def seconds() -> tuple[float, float]:
    """CPU seconds of this process and its ended children, and the wall clock."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used), time.perf_counter()


def cost(work: Work, samples: int) -> tuple[float, float]:
    """CPU and wall seconds of one more sample."""
    short, long = (timed(partial(work, n)) for n in (samples // 4, samples + samples // 4))
    cpu, wall = ((b - a) / samples for a, b in zip(short, long, strict=True))
    return cpu, wall


def rates(samples: int, rounds: int, workers: int) -> list[Table]:
    from torchdata.stateful_dataloader import StatefulDataLoader

    with tempfile.TemporaryDirectory() as name:
        folder = write_shards(Path(name), [64] * 4, photograph)
        index = ShardIndex.open(folder)
        places = [(shard, i) for shard, n in enumerate(index.sizes) for i in range(n)]
        np.random.default_rng(0).shuffle(places)
        raw = [index.read(*place) for place in places]
        size = sum(len(data) for _, fields in raw for data in fields.values()) / len(raw) / 1024
        tars = sorted(map(str, folder.glob("*.tar")))
        works: dict[str, tuple[Work, int]] = {
            TAR_READER: (partial(tar_reader, tars), 8 * samples),
            RAW_READS: (partial(raw_reads, index, places), 8 * samples),
            DECODE: (partial(decodes, raw), samples),
            DECODE_PARALLEL: (partial(parallel_decodes, raw, workers), samples),
            LOADER: (micro_batches(folder, NumberRows(), workers), samples),
            WEBDATASET: (partial(webdataset_batches, tars, workers, DataLoader), samples),
            STATEFUL: (partial(webdataset_batches, tars, workers, StatefulDataLoader), samples),
            DECODE_IMAGE: (partial(decodes, raw, images=True), 2 * samples),
            LOADER_IMAGE: (micro_batches(folder, ImageRows(), workers), 2 * samples),
        }
        costs: dict[str, list[tuple[float, float]]] = {what: [] for what in works}
        for _ in range(rounds):
            for what, work in works.items():
                costs[what].append(cost(*work))
    lines: list[list[Cell]] = []
    for what, measured in costs.items():
        lines.append([what, *(1 / statistics.median(column) for column in zip(*measured, strict=True))])
    ratios: list[list[Cell]] = []
    for clock, of, to, least in (
        ("CPU", RAW_READS, TAR_READER, 5.0),
        ("CPU", LOADER, DECODE, 0.9),
        ("CPU", LOADER, DECODE_PARALLEL, None),
        ("wall", LOADER, DECODE_PARALLEL, 0.9),
        ("CPU", LOADER, WEBDATASET, None),
        ("CPU", LOADER, STATEFUL, None),
        ("CPU", LOADER_IMAGE, DECODE_IMAGE, None),
    ):
        column = ("CPU", "wall").index(clock)
        found = spread(b[column] / a[column] for a, b in zip(costs[of], costs[to], strict=True))
        ratios.append([f"{of} / {to}", clock, found, at_least(least, RATIO) if least else None])
    title = f"Samples of {SIDE} x {SIDE}, {size:.0f} KiB each (JPEG, 16-bit depth, segmentation, json):"
    return [
        Table(["what", "samples per CPU second", "samples per second"], lines, title),
        Table(["rates divided", "clock", RATIO, "aim"], ratios, "Medians of the rounds (lowest to highest):"),
    ]


def tar_reader(tars: list[str], samples: int) -> None:
    for _ in itertools.islice(webdataset.WebDataset(tars, shardshuffle=False).repeat(), samples):
        pass


def raw_reads(index: ShardIndex, places: list[tuple[int, int]], samples: int) -> None:
    for place in itertools.islice(itertools.cycle(places), samples):
        index.read(*place)


def decodes(raw: list[tuple[str, dict[str, bytes]]], samples: int, images: bool = False) -> None:
    for key, fields in itertools.islice(itertools.cycle(raw), samples):
        sample = decode_sample(key, fields)
        _ = sample.image if images else sample.decoded()


def parallel_decodes(raw: list[tuple[str, dict[str, bytes]]], processes: int, samples: int) -> None:
    with ProcessPoolExecutor(processes) as pool:
        for done in [pool.submit(decodes, raw, samples // processes) for _ in range(processes)]:
            done.result()


def micro_batches(folder: Path, rows: object, workers: int) -> Work:
    dataset = number_batches(PLAN, {"s": open_stream("s", StreamConfig(str(folder)), 0)}, rows)

    def work(samples: int) -> None:
        for _ in MicroBatchLoader(dataset, 0, samples // ROWS, workers):
            pass

    return work


def webdataset_batches(tars: list[str], workers: int, loader: type, samples: int) -> None:
    for _ in itertools.islice(webdataset_loader(tars, workers, loader, webdataset.shuffle(128)), samples // ROWS):
        pass


def webdataset_loader(tars: list[str], workers: int, loader: type, *shuffle: object) -> DataLoader:
    """Endless micro-batches of the same content: every field decoded, the number kept."""
    shards = webdataset.ResampledShards(tars, seed=0, deterministic=True)
    stages = [shards, webdataset.tarfile_to_samples(), *shuffle, webdataset.map(number_of)]
    return loader(webdataset.DataPipeline(*stages), batch_size=ROWS, num_workers=workers)


def number_of(fields: dict[str, bytes]) -> int:
    return decode_sample("", {k: v for k, v in fields.items() if not k.startswith("__")}).decoded().meta["number"]


def synthetic_set(folder: Path, shards: int, samples: int) -> None:
    """A manifest of `shards` x `samples`, with an index for every shard; the tars are holes of the right size."""
    fields = {"json": [512, 900], "jpg": [2048, 60_000], "depth.png": [62_976, 40_000]}
    listed = [
        {
            "key": f"{i:07d}",
            "fields": {name: [103_936 * i + start, size] for name, (start, size) in fields.items()},
            "columns": {"width": 640, "height": 480, "clip_similarity": i / samples},
        }
        for i in range(samples)
    ]
    content = json.dumps({"version": 1, "samples": listed}, separators=(",", ":")).encode()
    rows = []
    for shard in range(shards):
        path = folder / f"data-{shard:06d}.tar"
        with open(path, "wb") as file:
            file.truncate(103_936 * samples + 1024)
        if shard == 0:
            index = path.with_suffix(".idx.json")
            index.write_bytes(content)
        else:
            os.link(index, path.with_suffix(".idx.json"))
        digest = hashlib.sha256(content).hexdigest()
        rows.append({"file": path.name, "samples": samples, "bytes": path.stat().st_size, "index_sha256": digest})
    (folder / "dataset.json").write_text(json.dumps({"version": 1, "fields": sorted(fields), "shards": rows}))


def resume(rounds: int) -> list[list[Cell]]:
    """What is opened, CPU seconds, seconds."""
    shards, samples, position = 1200, 10_000, 11_234_567
    with tempfile.TemporaryDirectory() as name:
        synthetic_set(Path(name), shards, samples)
        identity = open_stream("s", StreamConfig(name), 0).source.identity

        def first_read() -> None:
            stream = open_stream("s", StreamConfig(name), 0, Cursor(0, position, identity))
            stream.source.find(position, 0).read()

        taken = [timed(first_read) for _ in range(rounds)]
        resumed = [statistics.median(column) for column in zip(*taken, strict=True)]
        deep = f"resume at sample {position:,} of {shards * samples:,}: open, find, first read"

    shards = 100
    with tempfile.TemporaryDirectory() as name:
        synthetic_set(Path(name), shards, samples)
        config = StreamConfig(name, where=["clip_similarity >= 0.28", "has depth.png"])
        held = []
        cpu, wall = timed(lambda: held.append(open_stream("s", config, 0)))
        kept = len(pickle.dumps(held[0].source.selection)) / 1e6
        filtered = f"open {shards * samples:,} samples with two filters; {kept:.2f} MB are kept"
    return [[deep, *resumed], [filtered, cpu, wall]]


def stateful_resume(skipped: int) -> list[list[Cell]]:
    """What a resume costs where the loader must read again up to its place; ours does not depend on the place."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    with tempfile.TemporaryDirectory() as name:
        folder = write_shards(Path(name), [64] * 4, photograph)
        tars = sorted(map(str, folder.glob("*.tar")))
        first = webdataset_loader(tars, 1, StatefulDataLoader)
        batches = iter(first)
        for _ in range(skipped // ROWS):
            next(batches)
        state = first.state_dict()
        del batches

        def again() -> None:
            second = webdataset_loader(tars, 1, StatefulDataLoader)
            second.load_state_dict(state)
            next(iter(second))

        rereading = timed(again)

        cursor = Cursor(0, skipped, open_stream("s", StreamConfig(str(folder)), 0).source.identity)

        def ours() -> None:
            streams = {"s": open_stream("s", StreamConfig(str(folder)), 0, cursor)}
            next(iter(MicroBatchLoader(number_batches(PLAN, streams), 0, 1, 1)))

        return [
            [f"resume of webdataset by StatefulDataLoader at sample {skipped:,}", *rereading],
            ["resume of this loader at the same place", *timed(ours)],
        ]


def timed(work: Callable[[], object]) -> tuple[float, float]:
    before = seconds()
    work()
    cpu, wall = (b - a for a, b in zip(before, seconds(), strict=True))
    return cpu, wall


def measure(options: argparse.Namespace) -> list[Table]:
    if not find_spec("torchdata"):
        raise SystemExit("This benchmark alone needs torchdata. Type: pip install torchdata")
    torch.set_num_threads(1)
    opened = Table(["what", "CPU seconds", "seconds"], [*resume(options.rounds), *stateful_resume(1024)])
    return [*rates(options.samples, options.rounds, options.workers), opened]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--samples", type=int, default=512)
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--workers", type=int, default=2)
    return made


if __name__ == "__main__":
    run(parser(), measure)
