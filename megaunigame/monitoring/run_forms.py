"""The form of the JSON files in a run folder. Somebody may have sent the folder: what has another form is not shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from megaunigame.errors import DataError
from megaunigame.storage.foreign_text import quoted

LAST_STEP = 2**53
"""Of any run; exact in a plot."""


@dataclass(frozen=True)
class Kind:
    """Values of one kind, and what they are called in an error."""

    words: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Named:
    """An object with any keys."""

    form: Any


def is_number(value: Any) -> bool:
    """Whether a value can be shown and drawn: finite, and within the numbers of a plot."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300 and math.isfinite(value)


def is_step(value: Any) -> bool:
    """Whether a value is the number of a step."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LAST_STEP


def is_inside(name: Any) -> bool:
    """Whether a file name stays in the folder it is relative to: neither absolute nor with `..`."""
    if not isinstance(name, str) or not name or "\\" in name or "\0" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _is_date(value: Any) -> bool:
    try:
        return isinstance(value, str) and is_number(datetime.fromisoformat(value).timestamp())
    except (ValueError, OverflowError, OSError):  # the last two: years that the clock of this machine does not have
        return False


def _is_measured(value: Any) -> bool:
    """Also NaN, where nothing was measured, and infinity, the decibels between equal pictures."""
    return value is None or isinstance(value, float) or is_number(value)


def _is_cell(value: Any) -> bool:
    return isinstance(value, str | bool) or _is_measured(value)


def _is_table(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("title"), str):
        return False
    columns, rows = value.get("columns"), value.get("rows")
    if not isinstance(columns, list) or not all(isinstance(column, str) for column in columns) or not isinstance(rows, list):
        return False
    about = value.get("about", {})
    if not isinstance(about, dict) or not all(isinstance(text, str) for text in about.values()):
        return False
    whole = all(isinstance(row, list) and len(row) == len(columns) > 0 and all(map(_is_cell, row)) for row in rows)
    return whole and len(set(columns)) == len(columns)


TEXT = Kind("a text", lambda value: isinstance(value, str))
TRUTH = Kind("true or false", lambda value: isinstance(value, bool))
SECONDS = Kind("a number, 0 or more", lambda value: is_number(value) and value >= 0)
STEP = Kind("a whole number, 0 or more", is_step)
DATE = Kind("a date and time", _is_date)
PERHAPS_DATE = Kind("a date and time, or null", lambda value: value is None or _is_date(value))
MEASURED = Kind("a number or null", _is_measured)
TABLE = Kind("a table of texts and numbers", _is_table)
FILE = Kind("a file name inside of the run folder", is_inside)
FILE_OR_NONE = Kind('a file name inside of the run folder, or ""', lambda value: value == "" or is_inside(value))

RUN = {
    **{"name?": TEXT, "command?": TEXT, "world_size?": STEP, "started?": DATE, "finished?": PERHAPS_DATE},
    **{"seconds?": SECONDS, "versions?": Named(TEXT), "sources?": Named(TEXT), "origin?": Named(TEXT), "launches?": [DATE]},
}
SELECTION = {"best?": TEXT, "stopped?": TEXT}
PANELS = {"step": STEP, "lines": [{"title?": TEXT, "texts": Named(TEXT), "files": Named(FILE)}]}
EVALUATION = {
    "step": STEP,
    "suites": Named(
        {
            "metrics": Named(MEASURED),
            "tables": [TABLE],
            "pictures": [{"file": FILE, "caption": TEXT, "row": TEXT, "column": TEXT}],
            "questions": [
                {"image": FILE_OR_NONE, "question": TEXT, "answer": TEXT, "predicted": TEXT, "correct": TRUTH},
            ],
        }
    ),
}


def check_form(value: Any, form: Any, where: str) -> None:
    """Raises DataError at the first entry of the file `where` that has another form."""
    problem = next(_misfits(value, form, ""), None)
    if problem is not None:
        raise DataError(f"{where}: {problem}. It is left out.")


def _misfits(value: Any, form: Any, key: str) -> Iterator[str]:
    """What does not fit, in words. A form is a Kind, [form of each], Named(form of each), or an object: `name?` may lack."""
    wanted = form.words if isinstance(form, Kind) else "a list" if isinstance(form, list) else "an object"
    fits = form.holds(value) if isinstance(form, Kind) else isinstance(value, list if isinstance(form, list) else dict)
    if not fits:
        yield f"{key or 'the file'} must be {wanted}; got {quoted(value)}"
    elif isinstance(form, list):
        for number, item in enumerate(value):
            yield from _misfits(item, form[0], f"{key}[{number}]")
    elif isinstance(form, Named):
        for name, item in value.items():
            yield from _misfits(item, form.form, f"{key}[{quoted(name)}]")
    elif isinstance(form, dict):
        for name, of_entry in form.items():
            plain = name.removesuffix("?")
            if plain in value:
                yield from _misfits(value[plain], of_entry, f"{key}.{plain}" if key else plain)
            elif plain == name:
                yield f"{f'{key}.{plain}' if key else plain} is missing"
