"""`megaunigame prepare verify DIR`: checks shards against index, statistics and manifest, and decodes every field."""

from __future__ import annotations

import argparse
import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from tqdm import tqdm

from megaunigame.data.decode import (
    CONTOURS,
    DEPTH,
    IMAGE_FIELDS,
    SEGMENTATION,
    SEGMENTATION_FIELD,
    Sample,
    decode_sample,
    further_fields,
)
from megaunigame.data.edits import EDITS
from megaunigame.data.shards.manifest import MANIFEST
from megaunigame.data.shards.table import LARGEST_INDEX
from megaunigame.errors import DataError
from megaunigame.pictures.pillow import changes_of, opened
from megaunigame.pictures.rules import DEFAULT_RULES, PictureRules
from megaunigame.storage.foreign_text import one_line, quoted
from megaunigame.storage.json_files import read_object
from megaunigame.storage.pending import sha256_of
from megaunigame.storage.untrusted_json import parse

from . import recipe_rows
from .inputs.conversation import checked_edits, checked_talk, require_as_many
from .inputs.sample import EntryFailure
from .options import add_picture_options, picture_rules, require_at_least
from .shard_index import index_of, read_samples, without_texts
from .statistics import read_manifest
from .target_fields import is_same_shape
from .workers import in_processes

CHANGES = {
    "turned": "have an orientation tag: reading turns them upright",
    "transparent": "have a transparent color or channel: reading lays them on the ground (white by default)",
    "animated": "are animations: reading takes the first frame",
}
"""What `changes_of` names -> the end of a line of the report."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "verify",
        description="Checks sizes, indices and every field of every sample. A line per shard; exit code 1 on a fault.",
        epilog="examples:\n  megaunigame prepare verify shards/train\n  megaunigame prepare verify shards/llava --workers 8\n"
        "  megaunigame prepare verify shards/llava --for launch/recipes/janus_pro_7b_sft.yaml model.path=models/Janus-Pro-7B\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder of shards")
    parser.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    recipe_rows.add_option(parser)
    parser.add_argument("--samples", type=int, default=1000, help="samples, spread evenly, that --for looks at (default 1000)")
    add_picture_options(parser, ground=False)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Returns 0, or 1 when a shard has a fault or the recipe of --for would stop. Raises DataError without a manifest."""
    require_at_least(arguments, workers=1, samples=1)
    manifest = read_manifest(arguments.folder)
    faults = 0
    changed: Counter[str] = Counter()
    found = _checked(arguments.folder, manifest, picture_rules(arguments), arguments.workers)
    shown = tqdm(found, total=len(manifest["shards"]), unit="shard", desc="verify")
    for shard, (fault, changes) in zip(manifest["shards"], shown, strict=True):
        faults += fault is not None
        changed += changes
        said = f"{shard['samples']} samples, ok" if fault is None else f"FAULT: {one_line(fault, 1000)}"
        tqdm.write(f"{shard['file']}: {said}")
    counted = sum(shard["samples"] for shard in manifest["shards"])
    if counted != manifest["samples"]:
        faults += 1
        print(f"{MANIFEST}: FAULT: says {manifest['samples']} samples, its shards have {counted}")
    for change, pictures in changed.items():
        print(f"{pictures} pictures {CHANGES[change]}")
    print(f"{len(manifest['shards'])} shards, {faults} with faults")
    if arguments.recipe and not recipe_rows.print_rows(arguments.folder, arguments.recipe, arguments.samples):
        faults += 1
    return 1 if faults else 0


def _checked(
    folder: Path, manifest: dict[str, Any], rules: PictureRules, workers: int
) -> Iterator[tuple[str | None, Counter[str]]]:
    """For every shard, in order: its fault (None for a good one), and how many pictures reading changes."""
    check = functools.partial(_check_one, folder, manifest["config_hash"], rules)
    if workers == 1:
        yield from map(check, manifest["shards"])
        return
    shards = manifest["shards"]
    early: dict[str, tuple[str | None, Counter[str]]] = {}
    done = in_processes(check, shards, min(workers, len(shards)), name=lambda shard: str(shard["file"]))
    for shard in shards:
        while shard["file"] not in early:
            other, found = next(done)
            early[other["file"]] = found
        yield early.pop(shard["file"])


def _check_one(folder: Path, config_hash: str, rules: PictureRules, shard: dict[str, Any]) -> tuple[str | None, Counter[str]]:
    changes: Counter[str] = Counter()
    try:
        check_shard(folder, shard, config_hash, rules, changes)
    except DataError as fault:
        return str(fault), changes
    return None, changes


def check_shard(folder: Path, shard: dict[str, Any], config_hash: str, rules: PictureRules, changes: Counter[str]) -> None:
    """Compare one shard with its manifest line, statistics and index, then decode everything in it.

    Adds to `changes` how many pictures are not read as they are stored (`changes_of`).
    Raises DataError for a fault of the shard, else for the first sample with one.
    """
    tar = folder / shard["file"]
    index_path = tar.with_suffix(".idx.json")
    stats_path = tar.with_name(tar.stem + "_stats.json")
    for path in (tar, index_path, stats_path):
        if not path.is_file():
            raise DataError(f"{path.name} is missing")
    stats = read_object(stats_path, "the statistics of a shard", DataError, "Make the shard again.")
    for name in ("samples", "bytes", "index_sha256", "sha256"):
        if name in shard and (name in stats or name != "sha256") and stats.get(name) != shard[name]:
            raise DataError(f"{name}: {stats_path.name} says {quoted(stats.get(name))}, {MANIFEST} says {quoted(shard[name])}")
    if stats.get("config_hash") != config_hash:
        raise DataError(f"{stats_path.name} and {MANIFEST} have different config hashes")
    if tar.stat().st_size != shard["bytes"]:
        raise DataError(f"is {tar.stat().st_size} bytes long, {MANIFEST} says {shard['bytes']}: it was cut short or replaced")
    if hashlib.sha256(index_path.read_bytes()).hexdigest() != shard["index_sha256"]:
        raise DataError(f"{index_path.name} is not the index that was written")
    index = _read_index(index_path)
    made = index_of(tar)
    if index not in (made, without_texts(made)):
        raise DataError(f"{index_path.name} does not match the members of the tar")
    if len(index["samples"]) != shard["samples"]:
        raise DataError(f"has {len(index['samples'])} samples, {MANIFEST} says {shard['samples']}")
    faults = [
        fault for key, fields in read_samples(tar, index) if (fault := _fault_in(key, fields, rules, changes)) is not None
    ]
    if faults:
        raise DataError(faults[0] if len(faults) == 1 else f"{faults[0]} (and {len(faults) - 1} more samples with faults)")
    if "sha256" in shard and sha256_of(tar) != shard["sha256"]:
        raise DataError("is not the tar that was written: its sha256 differs")


def _read_index(path: Path) -> dict[str, Any]:
    try:
        return parse(path.read_bytes(), LARGEST_INDEX)  # type: ignore[no-any-return]
    except ValueError as error:
        raise DataError(f"{path.name} is not a shard index ({one_line(error)})") from error


def _fault_in(key: str, fields: dict[str, bytes], rules: PictureRules, changes: Counter[str]) -> str | None:
    try:
        check_sample(decode_sample(key, fields, rules).decoded())
        first = [field for field in IMAGE_FIELDS if field in fields][:1]
        for shown in (*first, *further_fields(fields)):
            changes.update(changes_of(fields[shown], rules))
        if SEGMENTATION_FIELD in fields:
            check_palette(key, fields[SEGMENTATION_FIELD], rules)
    except DataError as fault:
        return str(fault)
    return None


def check_sample(sample: Sample) -> None:
    """Raises DataError when a field of a sample cannot be decoded, or fields contradict each other."""

    def refuse(problem: str) -> NoReturn:
        raise DataError(f"sample {sample.key!r}: {problem}")

    meta, image, depth, segmentation = sample.meta, sample.image, sample.picture(DEPTH), sample.picture(SEGMENTATION)
    if not {"conversations", "caption", "questions", EDITS} & meta.keys():
        refuse("has neither conversations nor a caption nor questions")
    if "caption" in meta and not (isinstance(meta["caption"], str) and meta["caption"].strip()):
        refuse("has an empty caption")
    if "conversations" in meta:
        _check_conversations(meta, sample.image_count, refuse)
    if EDITS in meta:
        try:
            checked_edits(meta[EDITS], sample.image_count)
        except EntryFailure as failure:
            refuse(str(failure))
    if image is not None and {"width", "height"} <= meta.keys():
        if (meta["height"], meta["width"]) != tuple(image.shape[1:]):
            refuse(f"json says {meta['width']} x {meta['height']} pixels, the picture has {image.shape[2]} x {image.shape[1]}")
    if sample.codes is not None:
        stored = {len(grid) for grid in sample.codes.grids.values()}
        if stored != {sample.image_count}:
            refuse(f"has codes of {sum(stored)} pictures and {sample.image_count} pictures; make them again (annotate)")
    for name, target in ((DEPTH, depth), (SEGMENTATION, segmentation), (CONTOURS, sample.picture(CONTOURS))):
        if image is not None and target is not None and not is_same_shape(target.shape, image.shape[1:]):
            refuse(
                f"{name} is {target.shape[1]} x {target.shape[0]}, the picture {image.shape[2]} x {image.shape[1]}: another "
                "shape; make it again (annotate), from the upright picture"
            )
    if depth is not None and depth.max() > 0 and (depth.min(), depth.max()) != (0, 65535):
        refuse(f"depth runs from {int(depth.min())} to {int(depth.max())}, not from 0 to 65535")
    if segmentation is not None and "objects" in meta:
        seen = set(segmentation.unique().tolist()) - {0}
        try:
            listed = {int(thing["id"]) for thing in meta["objects"]}
        except (TypeError, KeyError, ValueError, OverflowError):
            refuse("has `objects` that are not a list of {id, ...}")
        if seen != listed:
            refuse(f"segmentation ids {sorted(seen)}, objects {sorted(listed)}")
    if segmentation is not None and depth is not None and segmentation.shape != depth.shape:
        refuse(f"segmentation is {tuple(segmentation.shape)}, depth {tuple(depth.shape)}")


def check_palette(key: str, segmentation: bytes, rules: PictureRules = DEFAULT_RULES) -> None:
    """Raises DataError when an indexed segmentation PNG has ids that its palette lacks.

    Gray ones (ids without colors) pass; decoding has already checked that the picture is one of the two.
    """
    with opened(segmentation, rules, formats=("PNG",)) as picture:
        palette = picture.getpalette()
        largest = int(np.asarray(picture).max())
    if palette is not None and largest >= len(palette) // 3:
        raise DataError(f"sample {key!r}: segmentation has id {largest}, its palette only {len(palette) // 3} colors")


def _check_conversations(meta: dict[str, Any], pictures: int, refuse: Callable[[str], NoReturn]) -> None:
    try:
        require_as_many(meta, checked_talk(meta["conversations"], pictures))
    except EntryFailure as failure:
        refuse(str(failure))
