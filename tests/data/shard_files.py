"""Small shards for the tests of this folder, written with webdataset, and the smallest objective and processor."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import webdataset
from PIL import Image

from megaunigame.data.decode import Sample
from megaunigame.data.loading.stream import MicroBatches
from megaunigame.data.shards.index import ShardIndex
from megaunigame.data.sources.base import Cursor
from megaunigame.errors import DataError
from megaunigame.step.amounts import Amounts
from megaunigame.step.inputs import PassInputs
from megaunigame.step.requests import RowRequest, StepPlan
from megaunigame.step.rows import Row, UnderstandRow
from tests.passes import pass_inputs


def encoded(array: np.ndarray, form: str = "PNG", palette: int | None = None) -> bytes:
    """An image file; `palette` makes a palette PNG of that many colors out of (H, W) uint8 ids."""
    picture = Image.fromarray(array)
    if palette is not None:
        picture = Image.frombytes("P", picture.size, picture.tobytes())
        picture.putpalette(list(range(3)) * palette)
    buffer = io.BytesIO()
    picture.save(buffer, form)
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    """A plain tar, as any tool writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def talk(*turns: tuple[str, str]) -> list[dict[str, str]]:
    """A conversation of questions and answers, as samples have it."""
    return [{"from": who, "value": text} for turn in turns for who, text in zip(("human", "gpt"), turn, strict=True)]


def sample_fields(number: int, side: int = 8) -> dict[str, bytes]:
    """Raw fields of sample `number`: its JSON carries the number, its pictures are drawn from it."""
    rng = np.random.default_rng(number)
    meta = {"number": number, "conversations": talk(("Q", "A"))}
    return {
        "json": json.dumps(meta).encode(),
        "png": encoded(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)),
        "depth.png": encoded(rng.integers(0, 65536, (side, side), dtype=np.uint16)),
        "seg.png": encoded(rng.integers(0, 5, (side, side), dtype=np.uint8), palette=5),
    }


def write_shards(
    folder: Path,
    sizes: Sequence[int],
    fields: Callable[[int], dict[str, bytes]] = sample_fields,
    index: bool = True,
    manifest: bool = True,
    columns: Callable[[int], dict[str, float]] = lambda number: {},
) -> Path:
    """Shards `data-00000k.tar` of the given sizes; samples are numbered through. Returns the folder.

    `fields` and `columns` give the files and the index columns of a sample by its number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first, rows, names = 0, [], set()
    for shard, size in enumerate(sizes):
        path = folder / f"data-{shard:06d}.tar"
        with webdataset.TarWriter(str(path)) as writer:
            for number in range(first, first + size):
                writer.write({"__key__": f"{number:07d}", **fields(number)})
        first += size
        samples = tar_samples(path)
        for number, sample in enumerate(samples, start=first - size):
            if numbers := columns(number):
                sample["columns"] = numbers
        names.update(*(s["fields"] for s in samples))
        content = json.dumps({"version": 1, "samples": samples}).encode()
        if index:
            path.with_suffix(".idx.json").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        rows.append({"file": path.name, "samples": size, "bytes": path.stat().st_size, "index_sha256": digest})
    if manifest:
        about = {"version": 1, "name": "data", "samples": sum(sizes), "fields": sorted(names), "shards": rows}
        (folder / "dataset.json").write_text(json.dumps({**about, "config": {}, "config_hash": ""}))
    return folder


def tar_samples(path: Path) -> list[dict]:
    """The samples of a tar as `idx.json` lists them."""
    samples: dict[str, dict] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, field = member.name.partition(".")
            samples.setdefault(key, {})[field] = [member.offset_data, member.size]
    return [{"key": key, "fields": fields} for key, fields in samples.items()]


def everything(index: ShardIndex) -> list[tuple[str, dict[str, bytes]]]:
    """Key and raw fields of all samples."""
    return [index.read(shard, i) for shard, n in enumerate(index.sizes) for i in range(n)]


def written(sizes: Sequence[int]) -> list[tuple[str, dict[str, bytes]]]:
    """`everything` of what `write_shards` wrote with these sizes."""
    return [(f"{n:07d}", sample_fields(n)) for n in range(sum(sizes))]


def stored_cursors(cursors: dict[str, Cursor]) -> dict[str, Cursor]:
    """Cursors as a checkpoint gives them back."""
    kept = json.loads(json.dumps({name: dataclasses.asdict(cursor) for name, cursor in cursors.items()}))
    return {name: Cursor(**fields) for name, fields in kept.items()}


def overwrite(folder: Path, number: int, field: str, data: bytes = b"\0") -> str:
    """Replace the bytes of one field in place, lengths and index unchanged. Returns the shard's file name."""
    for path in sorted(folder.glob("*.idx.json")):
        for sample in json.loads(path.read_text())["samples"]:
            if sample["key"] == f"{number:07d}":
                offset, size = sample["fields"][field]
                shard = path.with_name(path.name.replace(".idx.json", ".tar"))
                with open(shard, "r+b") as file:
                    file.seek(offset)
                    file.write((data * size)[:size])
                return shard.name
    raise AssertionError(f"no sample {number}")


class NumberRows:
    """Rows that carry the sample's number and one random draw, so that a test sees which sample went where."""

    def __init__(self, empty: Iterable[int] = (), refused: Iterable[int] = ()):
        self.empty, self.refused = set(empty), set(refused)

    def row(self, request: RowRequest, sample: Sample, rng: np.random.Generator) -> Row | None:
        number = sample.decoded().meta["number"]  # every field, so that a broken one is met
        if number in self.refused:
            raise DataError(f"Sample {sample.key!r} has no conversation.")
        if number in self.empty:
            return None
        return UnderstandRow(images=[sample.image], turns=[(str(number), str(int(rng.integers(1 << 30))))])


def number_batches(plan, streams, rows=None, accumulation=1, rank=0, world_size=1, first_step=0, **more) -> MicroBatches:
    """Micro-batches of `NumberRows` and `NumberCollator`."""
    objective_of = dict.fromkeys((r.term for r in plan.requests), rows or NumberRows())
    return MicroBatches(plan, objective_of, streams, NumberCollator(), accumulation, rank, world_size, 0, first_step, **more)


class NumberCollator:
    """tokens (B, 2): the sample's number (-1 for a dummy row) and its random draw."""

    tokenizer_hash = 16 * "a"

    def check(self, row: Row, geometry: str, key: str) -> None:
        pass

    def lengths(self, request: RowRequest, amounts: Amounts) -> np.ndarray:
        return amounts.pictures * 7 + amounts.json_bytes

    def collate(
        self, plan: StepPlan, pass_name: str, rows: Sequence[Row | None], terms: Sequence[int], keys: Sequence[str]
    ) -> PassInputs:
        tokens = torch.tensor([[-1, -1] if row is None else [int(x) for x in row.turns[0]] for row in rows])
        counts = torch.tensor([float(row is not None) for row in rows])
        return pass_inputs(PassInputs, tokens, terms=torch.tensor(terms), counts=counts, keys=list(keys))
