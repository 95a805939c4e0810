"""`python -m data_prep verify DIR`: is every shard what its index, statistics and manifest say?"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.shard_writer import MANIFEST, index_of
from data_prep.statistics import read_manifest
from megaunigame.data.decode import Sample, decode_sample
from megaunigame.errors import DataError

MARKER = "<image>"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "verify",
        help="check every shard of a folder",
        description="Checks sizes, indices and every field of every sample. A line per shard; exit code 1 on a fault.",
        epilog="examples:\n  python -m data_prep verify data/train\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder of shards")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Returns 0 when all is well, 1 when a shard has a fault. Raises DataError when there is no manifest."""
    manifest = read_manifest(arguments.folder)
    faults = 0
    for shard in tqdm(manifest["shards"], unit="shard", desc="verify"):
        try:
            check_shard(arguments.folder, shard, manifest["config_hash"])
        except DataError as fault:
            faults += 1
            tqdm.write(f"{shard['file']}: FAULT: {fault}")
        else:
            tqdm.write(f"{shard['file']}: {shard['samples']} samples, ok")
    counted = sum(shard["samples"] for shard in manifest["shards"])
    if counted != manifest["samples"]:
        faults += 1
        print(f"{MANIFEST}: FAULT: says {manifest['samples']} samples, its shards have {counted}")
    print(f"{len(manifest['shards'])} shards, {faults} with faults")
    return 1 if faults else 0


def check_shard(folder: Path, shard: dict[str, Any], config_hash: str) -> None:
    """Compare one shard with its manifest line, statistics and index, then decode everything in it.

    Raises DataError for the first fault.
    """
    tar = folder / shard["file"]
    index_path = tar.with_suffix(".idx.json")
    stats_path = tar.with_name(tar.stem + "_stats.json")
    for path in (tar, index_path, stats_path):
        if not path.is_file():
            raise DataError(f"{path.name} is missing")
    stats = json.loads(stats_path.read_text())
    for name in ("samples", "bytes", "index_sha256"):
        if stats[name] != shard[name]:
            raise DataError(f"{name}: {stats_path.name} says {stats[name]}, {MANIFEST} says {shard[name]}")
    if stats["config_hash"] != config_hash:
        raise DataError(f"{stats_path.name} and {MANIFEST} have different config hashes")
    if tar.stat().st_size != shard["bytes"]:
        raise DataError(f"is {tar.stat().st_size} bytes long, {MANIFEST} says {shard['bytes']}")
    if hashlib.sha256(index_path.read_bytes()).hexdigest() != shard["index_sha256"]:
        raise DataError(f"{index_path.name} is not the index that was written")
    index = json.loads(index_path.read_text())
    if index != index_of(tar):
        raise DataError(f"{index_path.name} does not match the members of the tar")
    if len(index["samples"]) != shard["samples"]:
        raise DataError(f"has {len(index['samples'])} samples, {MANIFEST} says {shard['samples']}")
    with open(tar, "rb") as stream:
        for entry in index["samples"]:
            fields = {}
            for name, (offset, size) in entry["fields"].items():
                stream.seek(offset)
                fields[name] = stream.read(size)
            check_sample(decode_sample(entry["key"], fields).decoded())


def check_sample(sample: Sample) -> None:
    """Raises DataError when the parts of a decoded sample do not fit each other."""

    def refuse(problem: str) -> None:
        raise DataError(f"sample {sample.key!r}: {problem}")

    spoken = [turn["value"] for turn in sample.meta["conversations"]]
    if "kinds" in sample.meta and 2 * len(sample.meta["kinds"]) != len(spoken):
        refuse(f"{len(sample.meta['kinds'])} kinds for {len(spoken)} turns")
    marked = [MARKER in value for value in spoken]
    if sample.image is None and any(marked):
        refuse(f"has {MARKER} but no image")
    if sample.image is not None and sum(marked) != 1:
        refuse(f"has an image and {sum(marked)} turns with {MARKER}; exactly one is legal")
    if sample.depth is not None and sample.depth.max() > 0 and (sample.depth.min(), sample.depth.max()) != (0, 65535):
        refuse(f"depth runs from {int(sample.depth.min())} to {int(sample.depth.max())}, not from 0 to 65535")
    if sample.segmentation is not None and "objects" in sample.meta:
        seen = set(sample.segmentation.unique().tolist()) - {0}
        listed = {thing["id"] for thing in sample.meta["objects"]}
        if seen != listed:
            refuse(f"segmentation ids {sorted(seen)}, objects {sorted(listed)}")
    if sample.segmentation is not None and sample.depth is not None:
        if sample.segmentation.shape != sample.depth.shape:
            refuse(f"segmentation is {tuple(sample.segmentation.shape)}, depth {tuple(sample.depth.shape)}")
