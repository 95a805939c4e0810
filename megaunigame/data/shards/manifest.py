"""`dataset.json`: the manifest of a folder of shards that `megaunigame prepare` has finished.

It may come from anybody, from a server for example: names stay inside the folder, and numbers are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megaunigame.data.shards.token_counts import listed_counts
from megaunigame.errors import DataError
from megaunigame.storage.foreign_text import one_line, quoted
from megaunigame.storage.plain_names import LONGEST_NAME, is_plain_name, readable
from megaunigame.storage.untrusted_json import parse

MANIFEST = "dataset.json"
TOKEN_COUNTS = "token_counts"
"""Its entry for counts of tokens: tokenizer -> sha256 of the file."""
MANIFEST_VERSION = 1
LARGEST_MANIFEST = 128 * 1024**2
"""Bytes: about half a million shards."""
MOST_SAMPLES, MOST_BYTES = 2**40, 2**50
"""Of one shard; sums over all shards fit into 64 bits."""
MOST_FIELDS = 4096
"""Different fields of all samples of a shard, and of a manifest. Every further picture of a sample is one."""
LONGEST_FILE = LONGEST_NAME - len(f".{MOST_BYTES}.part")
"""Bytes of the name of a shard: the cache of a node adds the longest ending, `.SIZE.part`, to it; that of a download."""
LONGEST_LOCAL_FILE = LONGEST_NAME - (len(".idx.json") - len(".tar"))
"""In a folder on this machine: only the index needs room."""
HASH = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class ListedShard:
    file: str
    """File name of the tar."""
    samples: int
    bytes: int
    """Size of the tar."""
    index_sha256: str
    """sha256 of its idx.json."""
    sha256: str | None = None
    """sha256 of the tar; None in the manifest of an earlier version."""


@dataclass(frozen=True)
class Manifest:
    shards: list[ListedShard]
    fields: tuple[str, ...]
    """All fields of all samples, sorted."""
    token_counts: Mapping[str, str] = field(default_factory=dict)
    """Tokenizer -> sha256 of the counts of its tokens (`token_counts`)."""


def parse_manifest(where: str, content: bytes, longest: int = LONGEST_FILE) -> Manifest:
    """The manifest in the `content` of the file `where`; `longest`: bytes of a shard's name.

    Raises DataError, naming the value, when anything is missing or wrong, or a name leads out of the folder.
    """
    remedy = "Run the same `megaunigame prepare` command again, or delete the file to use every .tar in the folder."
    try:
        manifest = parse(content, LARGEST_MANIFEST)
        version = manifest["version"]
        listed = [_listed(entry) for entry in manifest["shards"]]
        fields = manifest["fields"]
        token_counts = listed_counts(manifest.get(TOKEN_COUNTS, {}))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where} is not a manifest ({type(error).__name__}: {one_line(error)}). {remedy}") from error
    if version != MANIFEST_VERSION:
        raise DataError(f"{where} has version {quoted(version)}; this program reads version {MANIFEST_VERSION}. {remedy}")
    outside = [s.file for s in listed if not is_plain_name(s.file) or not s.file.endswith(".tar")]
    if outside:
        raise DataError(
            f"{where} lists {quoted(outside[0], 200)}, which is not the name of a .tar file in its folder. {remedy}"
        )
    long = next((s.file for s in listed if len(s.file.encode()) > longest), None)
    if long is not None:
        raise DataError(
            f"{where} lists {quoted(long)}, a name of {len(long.encode())} bytes; at most {longest} are legal: names of "
            "files next to it are longer. Give the shards shorter names: megaunigame prepare pack --name NAME."
        )
    if len({s.file for s in listed}) != len(listed):
        raise DataError(f"{where} lists a shard twice. {remedy}")
    if not isinstance(fields, list) or len(fields) > MOST_FIELDS or not all(map(is_field, fields)):
        raise DataError(f"{where}: `fields` must be a list of at most {MOST_FIELDS} names of fields. {remedy}")
    return Manifest(listed, tuple(sorted(fields)), token_counts)


def is_field(name: Any) -> bool:
    """Whether `name` may be a field of a sample: short, and fit to be shown anywhere."""
    return isinstance(name, str) and readable(name) == name and len(name.encode()) <= LONGEST_NAME


def _listed(entry: Any) -> ListedShard:
    """Raises KeyError, TypeError or ValueError."""
    file, tar_hash = entry["file"], entry.get("sha256")
    if not isinstance(file, str):
        raise TypeError(f"file {quoted(file)} is not a text")
    for name, least, most in (("samples", 0, MOST_SAMPLES), ("bytes", 1, MOST_BYTES)):
        if type(entry[name]) is not int or not least <= entry[name] <= most:
            raise ValueError(f"{name}={quoted(entry[name])} of {quoted(file)} is not a whole number from {least} to {most}")
    for name in ("index_sha256", "sha256")[: 1 + (tar_hash is not None)]:
        if not isinstance(entry[name], str) or not HASH.fullmatch(entry[name]):
            raise ValueError(f"{name}={quoted(entry[name])} of {quoted(file)} is not a sha256 of 64 hexadecimal digits")
    return ListedShard(file, entry["samples"], entry["bytes"], entry["index_sha256"], tar_hash)
