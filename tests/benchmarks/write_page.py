"""Writes the tables of the documents from docs/measurements/*.json, which `python -m tests.benchmarks` makes.

python -m tests.benchmarks.write_page

A table stands on any page of docs/ between `<!-- measured: NAME -->` and the next `<!-- end of measured -->`; `all` is the list
of all measurements.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.listed import RUNS
from tests.benchmarks.recording import FOLDER, REPOSITORY, Table

DOCS = REPOSITORY / "docs"
MARKED = re.compile(r"(<!-- measured: (\w+) -->\n).*?(<!-- end of measured -->)", re.DOTALL)
ALL = "all"


def measurements() -> dict[str, dict[str, Any]]:
    """Name -> the file of a measurement that was made."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(FOLDER.glob("*.json"))}


def block(name: str, known: Mapping[str, Any]) -> str:
    """Command and tables of one measurement, and on what it was made."""
    if name not in RUNS:
        raise ValueError(f"<!-- measured: {name} --> is not a measurement of tests/benchmarks/listed.py: {', '.join(RUNS)}")
    if name not in known:
        return f"Not measured yet. Type: `python -m tests.benchmarks --only {name}`"
    made = known[name]
    tables = [Table(**table).markdown() for table in made["tables"]]
    computer, (before, after) = made["machine"], made["load"]
    on = f"{computer['processor']}, {computer['cores']} cores, load {before} before and {after} after"
    packages = ", ".join(f"{package} {version}" for package, version in made["versions"].items())
    how = f"`python -m tests.benchmarks.{made['command']}`, {made['finished'][:10]}, {made['seconds']} s ({on}; {packages})"
    return "\n\n".join([*tables, f"{how}."])


def overview(known: Mapping[str, Any], places: Mapping[str, list[Path]]) -> str:
    """Every measurement, its page, command, date and load."""
    rows = []
    for name, command in RUNS.items():
        pages = ", ".join(f"[{page.stem}]({os.path.relpath(page, DOCS)})" for page in places.get(name, []))
        made = known.get(name)
        when = [made["finished"][:10], made["load"][0], made["seconds"]] if made else ["not measured", None, None]
        rows.append([name, pages, f"`{command}`", *when])
    return Table(
        ["measurement", "page", "what follows `python -m tests.benchmarks.`", "date", "load before", "seconds"], rows
    ).markdown()


def pages() -> dict[Path, str]:
    """Page with marks -> what it should hold."""
    known = measurements()
    texts = {page: page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md"))}
    places: dict[str, list[Path]] = {}
    for page, text in texts.items():
        for _, name, _ in MARKED.findall(text):
            places.setdefault(name, []).append(page)

    def filled(match: re.Match[str]) -> str:
        written = overview(known, places) if match[2] == ALL else block(match[2], known)
        return f"{match[1]}\n{written}\n\n{match[3]}"

    return {page: MARKED.sub(filled, text) for page, text in texts.items() if MARKED.search(text)}


def write() -> None:
    for page, text in pages().items():
        if page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")
            print(f"{page.relative_to(REPOSITORY)}: written")


if __name__ == "__main__":
    write()
