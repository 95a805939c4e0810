"""Rates of rows about photographs, from shards to the main process: `python -m tests.benchmarks.photographs`.

Photographs of 640 x 480 become pictures of 384 x 384. Compared are this loader, WebLoader of webdataset with the same decoding,
rows and collation, and the same work in one process without a loader; every loader has one worker. `pictures`: decoding and
resizing alone. `rows`: also the tokens of a conversation. Costs are marginal, within a round, as in `loader.py`.

`--stages`: what the stages take alone, in one process, which is the least that a loader can take.
"""

from __future__ import annotations

import argparse
import itertools
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import webdataset
from transformers import PreTrainedTokenizerFast

from megaunigame.config import StreamConfig
from megaunigame.data.decode import decode_sample
from megaunigame.data.loading import packing
from megaunigame.data.loading.blocks import Blocks
from megaunigame.data.loading.loader import MicroBatchLoader
from megaunigame.data.loading.stream import MicroBatches
from megaunigame.data.shards.index import ShardIndex
from megaunigame.data.sources.opening import open_stream
from megaunigame.models.janus.conversation import JanusFormat
from megaunigame.models.text.pictures import fit
from megaunigame.models.text.processor import HALF, RowProcessor
from megaunigame.models.text.sequences import stack_pictures
from megaunigame.step.inputs import PassInputs, UnderstandInputs
from megaunigame.step.requests import UNDERSTAND, RowRequest, StepPlan
from megaunigame.step.rows import Row, UnderstandRow
from tests.benchmarks.loader import Work, cost
from tests.benchmarks.recording import Cell, Table, at_least, run, spread
from tests.benchmarks.unigame import SHIPPED
from tests.data.shard_files import encoded, write_shards
from tests.passes import pass_inputs

SIDE, ROWS = 384, 8
PLAN = StepPlan((RowRequest("answer", UNDERSTAND, "s", ROWS),))
TURNS = [("what is on the table ?", "a red ball left of two blue cubes"), ("how many ?", "three")]
Collate = Callable[[Sequence[Row | None]], PassInputs]


def photograph(number: int) -> dict[str, bytes]:
    """A photograph of about 100 KiB."""
    rng = np.random.default_rng(number)
    smooth = np.kron(rng.integers(0, 104, (30, 40, 3)), np.ones((16, 16, 1)))
    return {
        "json": b'{"conversations": []}',
        "jpg": encoded((smooth + rng.integers(0, 96, (480, 640, 3))).astype(np.uint8), "JPEG"),
    }


class Pictures:
    """Collates pictures without texts, as bytes."""

    image_size = max_length = SIDE

    def check(self, row: Row, geometry: str, key: str) -> None: ...

    def collate(
        self, plan: StepPlan, pass_name: str, rows: Sequence[Row | None], terms: Sequence[int], keys: Sequence[str]
    ) -> PassInputs:
        squares = [[fit(picture, SIDE) for picture in row.images] for row in rows if isinstance(row, UnderstandRow)]
        images, valid = stack_pictures(squares, SIDE)
        return pass_inputs(UnderstandInputs, torch.zeros(len(rows), 8, dtype=torch.long), images=images, image_valid=valid)


def whole_rows(sends_bytes: bool) -> RowProcessor:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(SHIPPED))
    sizes = {"image_size": SIDE, "source_size": SIDE, "after_prompt": 576, "loss_positions": 576, "max_length": 1344}
    processor = RowProcessor(tokenizer, JanusFormat(tokenizer, 576, "", str(SHIPPED)), **sizes, mean=HALF, std=HALF)
    return processor.for_loader() if sends_bytes else processor


class Rows:
    """The objective."""

    def row(self, request: RowRequest, sample: object, rng: np.random.Generator) -> Row:
        return UnderstandRow([sample.image], TURNS)


def collated(processor: object, rows: Sequence[Row]) -> PassInputs:
    return processor.collate(PLAN, UNDERSTAND, rows, [0] * len(rows), ["key"] * len(rows))


def row_of(fields: dict[str, bytes]) -> Row:
    sample = decode_sample("key", {k: v for k, v in fields.items() if not k.startswith("__")})
    return Rows().row(PLAN.requests[0], sample, None)


def in_process(raw: list[dict[str, bytes]], processor: object, samples: int) -> None:
    fields = itertools.cycle(raw)
    for _ in range(samples // ROWS):
        collated(processor, [row_of(next(fields)) for _ in range(ROWS)])


def decoding(raw: list[dict[str, bytes]], samples: int) -> None:
    for fields in itertools.islice(itertools.cycle(raw), samples):
        fit(decode_sample("key", fields).image, SIDE)


def ours(folder: Path, processor: object) -> Work:
    streams = {"s": open_stream("s", StreamConfig(str(folder)), 0)}
    dataset = MicroBatches(PLAN, {"answer": Rows()}, streams, processor, 1, 0, 1, 0, 0)

    def work(samples: int) -> None:
        for _ in MicroBatchLoader(dataset, 0, samples // ROWS, 1):
            pass

    return work


def web_loader(tars: list[str], processor: object, samples: int) -> None:
    stages = [
        webdataset.ResampledShards(tars, seed=0, deterministic=True),
        webdataset.tarfile_to_samples(),
        webdataset.shuffle(64),
        webdataset.map(row_of),
        webdataset.batched(ROWS, collation_fn=partial(collated, processor)),
    ]
    loader = webdataset.WebLoader(webdataset.DataPipeline(*stages), batch_size=None, num_workers=1)
    for _ in itertools.islice(loader, samples // ROWS):
        pass


def stages(folder: Path, raw: list[dict[str, bytes]], samples: int) -> list[Table]:
    """CPU microseconds of a sample in each stage, the second time that it runs."""
    batches = samples // ROWS
    streams = {"s": open_stream("s", StreamConfig(str(folder)), 0)}
    made, with_texts = (
        MicroBatches(PLAN, {"answer": Rows()}, streams, processor, 1, 0, 1, 0, 0)
        for processor in (Pictures(), whole_rows(True))
    )
    blocks, batch = Blocks(1, 2), made[0]
    packed = packing.pack(batch, blocks)
    index = ShardIndex.open(folder)
    places = [(shard, i) for shard, n in enumerate(index.sizes) for i in range(n)]
    works: dict[str, Callable[[], object]] = {
        "decoding and resizing": lambda: decoding(raw, samples),
        "reading": lambda: [index.read(*place) for place in itertools.islice(itertools.cycle(places), samples)],
        "micro-batches of pictures": lambda: [made[number] for number in range(batches)],
        "micro-batches of rows": lambda: [with_texts[number] for number in range(batches)],
        "packing into a block": lambda: [packing.pack(batch, blocks) for _ in range(batches)],
        "the message": lambda: [pickle.loads(pickle.dumps(packed)) for _ in range(batches)],
        "copying out of the block": lambda: [packed.unpacked(blocks) for _ in range(batches)],
    }
    lines: list[list[Cell]] = []
    for what, work in works.items():
        work()
        began = time.process_time()
        work()
        lines.append([what, 1e6 * (time.process_time() - began) / samples])
    return [Table(["stage", "CPU, us a sample"], lines)]


class Worker:
    """What a loader worker sees of itself."""

    id = 0


DECODING, TOGETHER, OURS, WEB = "decoding and resizing, in process", "in process", "this loader", "WebLoader"
FLOATS = ", values instead of bytes"
CPU = "CPU"


def measure(options: argparse.Namespace) -> list[Table]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = write_shards(Path(name), [32] * 4, photograph)
        index, tars = ShardIndex.open(folder), sorted(map(str, folder.glob("*.tar")))
        raw = [index.read(shard, i)[1] for shard, n in enumerate(index.sizes) for i in range(n)]
        if options.stages:
            with mock.patch.object(packing, "get_worker_info", Worker):
                return stages(folder, raw, options.samples)
        works: dict[str, Work] = {DECODING: partial(decoding, raw)}
        for kind, processor in (("pictures", Pictures()), ("rows", whole_rows(True)), ("rows" + FLOATS, whole_rows(False))):
            works[f"{kind}: {TOGETHER}"] = partial(in_process, raw, processor)
            works[f"{kind}: {OURS}"] = ours(folder, processor)
            works[f"{kind}: {WEB}"] = partial(web_loader, tars, processor)
        costs: dict[str, list[tuple[float, float]]] = {what: [] for what in works}
        for _ in range(options.rounds):
            for what, work in works.items():
                costs[what].append(cost(work, options.samples))
    kilobytes = sum(len(fields["jpg"]) for fields in raw) / len(raw) / 1024
    lines: list[list[Cell]] = []
    for what, measured in costs.items():
        lines.append([what, *(1 / statistics.median(column) for column in zip(*measured, strict=True))])
    pairs = [(f"{kind}: {OURS}", f"{kind}: {WEB}", 1.0) for kind in ("pictures", "rows")]
    pairs += [(f"rows{FLOATS}: {OURS}", f"rows{FLOATS}: {WEB}", None), (f"pictures: {OURS}", DECODING, 0.95)]
    pairs += [(f"{kind}: {OURS}", f"{kind}: {TOGETHER}", None) for kind in ("pictures", "rows")]
    pairs += [(f"rows: {OURS}", f"rows{FLOATS}: {OURS}", None)]
    ratios: list[list[Cell]] = []
    for of, to, least in pairs:
        in_cpu, in_wall = (spread(b[i] / a[i] for a, b in zip(costs[of], costs[to], strict=True)) for i in range(2))
        ratios.append([f"{of} / {to}", in_cpu, at_least(least, CPU) if least else None, in_wall])
    return [
        Table(["what", "samples per CPU second", "samples per second"], lines, f"Photographs of {kilobytes:.0f} KiB:"),
        Table(["rates divided", CPU, "aim", "wall clock"], ratios, "Medians of the rounds (lowest to highest):"),
    ]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--samples", type=int, default=256)
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--stages", action="store_true", help="the stages alone")
    return made


if __name__ == "__main__":
    run(parser(), measure)
