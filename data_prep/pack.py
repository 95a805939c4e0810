"""`python -m data_prep pack`: a LLaVA-style JSON file and a folder of images into shards.

The JSON is a list of {"id", "image" (path below the image root, absent for text-only rows), "conversations"}. Image
files are stored byte for byte when they are JPEG, PNG or WebP; other formats are stored as PNG.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import io
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from PIL import Image, UnidentifiedImageError

from data_prep.options import add_failure_options, add_part_options, part_of, require_at_least
from data_prep.shard_writer import FAILURES, Job, Shard, ShardSample, enforce_limit, finish_dataset, write_dataset
from megaunigame.errors import DataError

EXAMPLES = """examples:
  python -m data_prep pack --format llava-json --json llava_v1_5_mix665k.json --image-root data --out shards/llava
  python -m data_prep pack --format llava-json --json mine.json --image-root pictures --out shards/mine \\
      --max-failed-fraction 0.05
"""
MARKER = "<image>"
STORED_AS_IS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_ENTRY_FORM = '{"id": ..., "image": "a/b.jpg" (optional), "conversations": [{"from": "human", "value": ...}, ...]}'


class ImageFailure(Exception):
    """An image that cannot be packed; its text is the reason written to failures.jsonl."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "pack",
        help="pack a LLaVA-style JSON file and its images",
        description="Packs conversations and images into WebDataset shards. Images that are missing or unreadable are "
        f"left out and listed in {FAILURES}; too many of them are an error. An interrupted run continues.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--format", choices=("llava-json",), required=True)
    parser.add_argument("--json", type=Path, required=True, help="list of {id, image?, conversations}")
    parser.add_argument("--image-root", type=Path, required=True, help="folder the image paths are relative to")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--name", default="llava", help="shards are called NAME-000000.tar (default llava)")
    parser.add_argument("--shard-size", type=int, default=1000, help="entries per shard (default 1000)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    add_part_options(parser)
    add_failure_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Pack. Raises DataError for a JSON file that is not of the form, or when too many images fail."""
    require_at_least(arguments, shard_size=1, workers=1)
    part = part_of(arguments)
    if not re.fullmatch(r"[A-Za-z0-9_-]+", arguments.name):
        raise DataError(f"--name {arguments.name}: only letters, digits, - and _ can be part of a shard's name")
    if not arguments.image_root.is_dir():
        raise DataError(f"--image-root {arguments.image_root}: no such folder")
    entries = read_entries(arguments.json)
    absent = [_failure(k, e, "missing file") for k, e in enumerate(entries) if _is_missing(e, arguments.image_root)]
    enforce_limit(arguments.out, absent, len(entries), arguments.max_failed_fraction)
    config = {
        "command": "pack",
        "format": arguments.format,
        "json": arguments.json.name,
        "json_sha256": hashlib.sha256(arguments.json.read_bytes()).hexdigest(),
        "image_root": str(arguments.image_root),
        "shard_size": arguments.shard_size,
    }
    job = Job(
        folder=arguments.out,
        name=arguments.name,
        config=config,
        shards=-(-len(entries) // arguments.shard_size),
        shard=functools.partial(entries_of_shard, arguments.json, arguments.image_root, config),
    )
    statistics = write_dataset(job, arguments.workers, arguments.overwrite, part, arguments.retry_failed)
    if statistics is not None:
        print(finish_dataset(job, statistics, arguments.max_failed_fraction))
        failed = sum(stats["failed"] for stats in statistics)
        print(f"{len(entries) - failed} of {len(entries)} entries packed, {failed} failed")


def read_entries(path: Path) -> list[dict[str, Any]]:
    """The checked entries of a LLaVA-style JSON file; in those with an image the first turn starts with the marker.

    Raises DataError naming the first entry that is not of the form.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"--json {path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"--json {path}: not JSON ({error})") from error
    if not isinstance(entries, list) or not entries:
        got = "an empty list" if entries == [] else f"a JSON {type(entries).__name__}"
        raise DataError(f"--json {path}: got {got}; wanted a list of {_ENTRY_FORM}")
    return [_checked(path, number, entry) for number, entry in enumerate(entries)]


def entries_of_shard(json_path: Path, image_root: Path, config: dict[str, Any], number: int) -> Shard:
    """Shard `number` of the data set that `config` describes."""
    entries, shard_size = _entries_once(json_path, config["json_sha256"]), config["shard_size"]
    first = number * shard_size
    shard = Shard(samples=())
    shard.samples = _samples(entries, range(first, min(first + shard_size, len(entries))), image_root, shard.failures)
    return shard


def key_of(number: int, entry: dict[str, Any]) -> str:
    """A unique shard key: the entry's number, then what of its id is fit for a file name (never a dot)."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", str(entry.get("id", ""))).strip("_")[:60]
    return f"{number:08d}-{readable}" if readable else f"{number:08d}"


def image_field(path: Path) -> tuple[str, bytes]:
    """Extension and bytes of an image file, as stored in a shard. Raises ImageFailure for anything else."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ImageFailure("missing file" if isinstance(error, FileNotFoundError) else str(error.strerror)) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                if image.format in STORED_AS_IS:
                    image.verify()
                    return STORED_AS_IS[image.format], content
                out = io.BytesIO()
                image.convert("RGB").save(out, "png", compress_level=1)
                return "png", out.getvalue()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ImageFailure("not an image") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageFailure("more pixels than an image should have") from error


@functools.lru_cache(maxsize=1)  # a worker reads the file once, not once per shard
def _entries_once(path: Path, sha256: str) -> list[dict[str, Any]]:
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise DataError(f"--json {path}: was changed while it was being packed; run the command again")
    return read_entries(path)


def _samples(
    entries: list[dict[str, Any]], numbers: range, image_root: Path, failures: list[dict[str, str]]
) -> Iterator[ShardSample]:
    for number in numbers:
        entry = entries[number]
        record = {name: value for name, value in entry.items() if name != "image"}
        meta = json.dumps(record, ensure_ascii=False).encode()
        sample: ShardSample = {"__key__": key_of(number, entry), "json": meta}
        if "image" in entry:
            try:
                extension, content = image_field(image_root / entry["image"])
            except ImageFailure as failure:
                failures.append(_failure(number, entry, str(failure)))
                continue
            sample[extension] = content
        yield sample


def _failure(number: int, entry: dict[str, Any], reason: str) -> dict[str, str]:
    return {"key": key_of(number, entry), "image": entry["image"], "reason": reason}


def _is_missing(entry: dict[str, Any], image_root: Path) -> bool:
    return "image" in entry and not (image_root / entry["image"]).is_file()


def _checked(path: Path, number: int, entry: Any) -> dict[str, Any]:
    def refuse(problem: str) -> NoReturn:
        raise DataError(f"--json {path}: entry {number}: {problem}; wanted {_ENTRY_FORM}")

    if not isinstance(entry, dict):
        refuse(f"is a JSON {type(entry).__name__}")
    turns = entry.get("conversations")
    if not isinstance(turns, list) or not turns:
        refuse(f"has no conversations (its keys: {', '.join(entry) or 'none'})")
    for turn in turns:
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str) or "from" not in turn:
            refuse(f"has a turn that is not {{from, value}}: {json.dumps(turn)[:80]}")
    speakers = [turn["from"] for turn in turns if turn["from"] != "system"]
    if not speakers or speakers != ["human", "gpt"] * (len(speakers) // 2):
        refuse(f"has turns from {speakers}; human and gpt must alternate, human first, gpt last")
    if "image" in entry and entry["image"] is None:
        entry = {name: value for name, value in entry.items() if name != "image"}
    if "image" not in entry:
        if any(MARKER in turn["value"] for turn in turns):
            refuse(f"has {MARKER} in a turn but no image")
        return entry
    image = entry["image"]
    if not isinstance(image, str) or not image:
        refuse(f"has image {json.dumps(image)[:80]}, not one path")
    if Path(image).is_absolute() or ".." in Path(image).parts:
        refuse(f"has image {image!r}, which leads out of the image root")
    return {**entry, "conversations": _marked(turns, refuse)}


def _marked(turns: list[dict[str, Any]], refuse: Any) -> list[dict[str, Any]]:
    """The turns with the image marker exactly once, at the start of the first human turn."""
    first = next(k for k, turn in enumerate(turns) if turn["from"] == "human")
    if sum(turn["value"].count(MARKER) for turn in turns) - turns[first]["value"].count(MARKER):
        refuse(f"has {MARKER} outside its first human turn")
    if turns[first]["value"].count(MARKER) > 1:
        refuse(f"has {MARKER} more than once")
    words = turns[first]["value"].replace(MARKER, "").strip()
    marked = {**turns[first], "value": f"{MARKER}\n{words}"}
    return [*turns[:first], marked, *turns[first + 1 :]]
