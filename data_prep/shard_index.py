"""What is where in a tar: the content of NAME-000000.idx.json."""

from __future__ import annotations

import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

from megaunigame.errors import DataError

INDEX_VERSION = 1
META_FIELD = "json"


def index_of(tar: Path) -> dict[str, Any]:
    """The index of a tar from one scan of its headers: for every key, offset and size of each field's data.

    Numbers at the top level of a sample's json become its `columns`, which filters of a training run can ask for. Names
    are split as WebDataset does: at the first dot behind the last slash, the field in lower case.
    Raises DataError when the tar cannot be read to its end or the fields of a key are not adjacent.
    """
    samples: list[dict[str, Any]] = []
    seen: set[str] = set()
    try:
        with open(tar, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                folder, slash, name = member.name.rpartition("/")
                stem, dot, field = name.partition(".")
                if not member.isfile() or not stem or not dot:
                    continue
                key, field = folder + slash + stem, field.lower()
                if not samples or samples[-1]["key"] != key:
                    if key in seen:
                        raise DataError(
                            f"{tar}: the fields of {key!r} are not adjacent; write the tar with its members sorted by name"
                        )
                    seen.add(key)
                    samples.append({"key": key, "fields": {}})
                if field in samples[-1]["fields"]:
                    raise DataError(f"{tar}: {key!r} has two fields {field!r}; write the tar again")
                samples[-1]["fields"][field] = [member.offset_data, member.size]
                if field == META_FIELD:
                    columns = _numbers(os.pread(stream.fileno(), member.size, member.offset_data))
                    if columns:
                        samples[-1]["columns"] = columns
            # tarfile takes both the end of the file and a damaged header for the end of the archive.
            mark = os.pread(stream.fileno(), tarfile.BLOCKSIZE, archive.offset)
            if mark != bytes(tarfile.BLOCKSIZE):
                problem = "has a damaged header" if len(mark) == tarfile.BLOCKSIZE else "was cut short"
                raise DataError(f"{tar}: {problem} at byte {archive.offset:,}; copy or write it again")
    except tarfile.TarError as error:
        raise DataError(f"{tar}: not a whole, uncompressed tar ({error}); copy or write it again") from error
    return {"version": INDEX_VERSION, "samples": samples}


def _numbers(meta: bytes) -> dict[str, int | float]:
    """Finite numbers at the top level of a json object; none in what is no object (decoding the sample tells of that)."""
    try:
        record = json.loads(meta)
    except ValueError:
        return {}
    if not isinstance(record, dict):
        return {}
    return {name: value for name, value in record.items() if type(value) in (int, float) and _is_finite(value)}


def _is_finite(value: int | float) -> bool:
    return abs(value) <= sys.float_info.max  # math.isfinite cannot take an integer of 400 digits
