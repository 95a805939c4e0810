"""`dataset.json`: the manifest of a folder of shards that `python -m data_prep` has finished."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from megaunigame.errors import DataError

MANIFEST = "dataset.json"
MANIFEST_VERSION = 1


@dataclass(frozen=True)
class ListedShard:
    file: str
    """File name of the tar."""
    samples: int
    bytes: int
    """Size of the tar."""
    index_sha256: str
    """sha256 of its idx.json."""


@dataclass(frozen=True)
class Manifest:
    shards: list[ListedShard]
    fields: tuple[str, ...]
    """All fields of all samples, sorted."""


def parse_manifest(where: str, content: bytes) -> Manifest:
    """The manifest in the `content` of the file `where`. Raises DataError when anything is missing or wrong."""
    remedy = "Run the same `python -m data_prep` command again, or delete the file to use every .tar in the folder."
    try:
        manifest = json.loads(content)
        version = manifest["version"]
        listed = [ListedShard(str(s["file"]), int(s["samples"]), s["bytes"], s["index_sha256"]) for s in manifest["shards"]]
        fields = manifest["fields"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where} is not a manifest ({type(error).__name__}: {error}). {remedy}") from error
    if version != MANIFEST_VERSION:
        raise DataError(f"{where} has version {version}; this program reads version {MANIFEST_VERSION}. {remedy}")
    whole = all(s.samples >= 0 and s.bytes and s.index_sha256 for s in listed)
    outside = [s.file for s in listed if not re.fullmatch(r"[^/\\]*[^/\\.][^/\\]*", s.file)]
    if outside:
        raise DataError(f"{where} lists {outside[0]!r}, which is not the name of a file in its folder. {remedy}")
    if not whole or len({s.file for s in listed}) != len(listed) or not isinstance(fields, list):
        raise DataError(f"{where} lists a shard twice, or one without size, samples or index hash. {remedy}")
    return Manifest(listed, tuple(sorted(fields)))
