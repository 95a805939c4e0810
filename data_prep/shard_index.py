"""The index of a tar (NAME-000000.idx.json), and reading samples by it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megaunigame.data.decode import IMAGE_FIELDS, LARGEST_JSON, META_FIELD, further_fields
from megaunigame.data.shards.amounts import TEXT_COLUMNS, text_columns
from megaunigame.data.shards.table import LARGEST_SAMPLE
from megaunigame.data.shards.tar_scan import scan_tar
from megaunigame.errors import DataError
from megaunigame.storage.plain_names import readable
from megaunigame.storage.untrusted_json import parse

INDEX_VERSION = 1


def index_of(tar: Path) -> dict[str, Any]:
    """The index of a tar from one scan of its headers: for every key, offset and size of each field's data.

    Numbers at the top level of a sample's json become its `columns`, which filters of a training run can use, and so do the
    lengths of its texts (`TEXT_COLUMNS`), by which a run deals rows.
    Raises DataError when the tar cannot be read to its end or the fields of a key are not adjacent.
    """
    samples: list[dict[str, Any]] = []
    with open(tar, "rb") as stream:
        for key, spans in scan_tar(tar):
            sample: dict[str, Any] = {"key": key, "fields": {field: list(span) for field, span in spans.items()}}
            if META_FIELD in spans:
                offset, size = spans[META_FIELD]
                meta = os.pread(stream.fileno(), min(size, LARGEST_JSON + 1), offset)
                columns = _columns(meta, len(further_fields(spans)) + any(field in spans for field in IMAGE_FIELDS))
                if columns:
                    sample["columns"] = columns
            samples.append(sample)
    return {"version": INDEX_VERSION, "samples": samples}


def read_samples(tar: Path, index: dict[str, Any]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and fields of every sample of a tar, in order. Raises DataError for a field that is too large to be read."""
    with open(tar, "rb") as stream:
        for sample in index["samples"]:
            fields = {}
            for name, (offset, size) in sample["fields"].items():
                if size > LARGEST_SAMPLE:
                    raise DataError(
                        f"sample {readable(sample['key'])!r}: {name} has {size:,} bytes, more than {LARGEST_SAMPLE:,}"
                    )
                stream.seek(offset)
                fields[name] = stream.read(size)
            yield readable(sample["key"]), fields


def without_texts(index: dict[str, Any]) -> dict[str, Any]:
    """As an earlier version wrote it: without lengths of texts."""
    samples = []
    for sample in index["samples"]:
        kept = {name: value for name, value in sample.get("columns", {}).items() if name not in TEXT_COLUMNS}
        bare = {name: value for name, value in sample.items() if name != "columns"}
        samples.append(bare | ({"columns": kept} if kept else {}))
    return {**index, "samples": samples}


def _columns(meta: bytes, pictures: int) -> dict[str, int | float]:
    """Finite numbers at the top level of a json object, and the lengths of its texts; none if it is not an object (decoding the
    sample reports that)."""
    try:
        record = parse(meta, LARGEST_JSON)
    except ValueError:
        return {}
    if not isinstance(record, dict):
        return {}
    numbers = {name: value for name, value in record.items() if type(value) in (int, float) and _is_finite(value)}
    return numbers | text_columns(record, pictures)


def _is_finite(value: int | float) -> bool:
    return abs(value) <= sys.float_info.max  # math.isfinite cannot take an integer of 400 digits
