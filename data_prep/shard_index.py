"""The index of a tar (NAME-000000.idx.json), and reading samples by it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from megaunigame.data.shards.tar_scan import scan_tar

INDEX_VERSION = 1
META_FIELD = "json"


def index_of(tar: Path) -> dict[str, Any]:
    """The index of a tar from one scan of its headers: for every key, offset and size of each field's data.

    Numbers at the top level of a sample's json become its `columns`, which filters of a training run can use.
    Raises DataError when the tar cannot be read to its end or the fields of a key are not adjacent.
    """
    samples: list[dict[str, Any]] = []
    with open(tar, "rb") as stream:
        for key, spans in scan_tar(tar):
            sample: dict[str, Any] = {"key": key, "fields": {field: list(span) for field, span in spans.items()}}
            if META_FIELD in spans:
                offset, size = spans[META_FIELD]
                columns = _numbers(os.pread(stream.fileno(), size, offset))
                if columns:
                    sample["columns"] = columns
            samples.append(sample)
    return {"version": INDEX_VERSION, "samples": samples}


def read_samples(
    tar: Path, index: dict[str, Any], only: Collection[str] | None = None
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and fields of every sample of a tar, in order; of the fields those in `only`, if given."""
    with open(tar, "rb") as stream:
        for sample in index["samples"]:
            fields = {}
            for name, (offset, size) in sample["fields"].items():
                if only is None or name in only:
                    stream.seek(offset)
                    fields[name] = stream.read(size)
            yield sample["key"], fields


def _numbers(meta: bytes) -> dict[str, int | float]:
    """Finite numbers at the top level of a json object; none if it is not an object (decoding the sample reports that)."""
    try:
        record = json.loads(meta)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(record, dict):
        return {}
    return {name: value for name, value in record.items() if type(value) in (int, float) and _is_finite(value)}


def _is_finite(value: int | float) -> bool:
    return abs(value) <= sys.float_info.max  # math.isfinite cannot take an integer of 400 digits
