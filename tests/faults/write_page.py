"""Writes the table of docs/reliability.md: from the marks `fault` of all tests, and from the results of a run of them.

python -m tests.faults.write_page FILE     FILE: of `pytest --fault-results=FILE`
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.faults.marks import REPOSITORY, MarkedTest, marked_tests

PAGE = REPOSITORY / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: written by tests/faults/write_page.py -->", "<!-- end of faults -->"
KINDS = (
    (
        "A rank is lost, stops, or is slow",
        r"rank|worker|slow|stopped|\bhang|out of step|lockstep|launcher|heartbeat|collective",
    ),
    ("A node or its network is lost", r"\bnodes?\b|network|\blink\b|\bhost\b"),
    ("Another number of ranks", "number of ranks|world size|reshard|elastic"),
    ("The disk", r"\bdisk\b|space|permission|read-only|cannot be written|two runs|file system"),
    ("A checkpoint is damaged", "checkpoint|manifest|`latest`|step folder|learner-|train_state|metrics.jsonl|run.json"),
    ("Divergence", r"not finite|\bNaN\b|diverge|spike|gradient|infinite"),
    ("Signals and preemption", "signal|preempt|Slurm|Kubernetes|requeue|time limit|interrupt"),
    ("Hostile input", "hostile|pickle|malicious|outside|traversal|bomb|overflow|nested|huge|fuzz|absolute|escape"),
    ("Data", r"samples?\b|shard|\bdata\b|picture|\btext|JSON|\bindex|http|download|\btar\b"),
)
"""Title of a part of the table, in this order, and words of the faults in it."""
FIRST = (
    *("Signals and preemption", "Another number of ranks", "Divergence", "Hostile input", "The disk"),
    "A checkpoint is damaged",
)
"""A fault with words of several parts belongs to the first of these, or else to the first of KINDS."""
FOLDERS = {"tests/data": "Data", "tests/data_prep": "Data", "tests/checkpoint": "A checkpoint is damaged"}
"""Where a fault belongs that no word decides."""
OTHERS = "Other faults"
COLUMNS = ("Fault", "What the run does", "What is lost", "Test", "Measured")
ROW = re.compile(r"^\|.*\| `([^`]+)` \|[^|]*\|$", re.MULTILINE)
"""A line of the table; group 1: its test."""


def kind_of(test: MarkedTest) -> str:
    found = [kind for kind, words in KINDS if re.search(words, test.what, re.IGNORECASE)]
    if not found:
        return next((kind for folder, kind in FOLDERS.items() if test.test.startswith(f"{folder}/")), OTHERS)
    return min(found, key=lambda kind: FIRST.index(kind) if kind in FIRST else len(FIRST))


def cases_of(test: MarkedTest, results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The results of all parameters of a test."""
    return [result for name, result in results.items() if name.split("[")[0] == test.test]


def what_was_seen(cases: list[dict[str, Any]]) -> str:
    """The last column: cases, time, and the largest of each measured value."""
    if not cases:
        return "not run"
    parts = [outcome for outcome in ("failed", "skipped") if any(case["outcome"] == outcome for case in cases)]
    parts += [f"{len(cases)} cases"] if len(cases) > 1 else []
    values: dict[str, tuple[float, str]] = {}
    for name, value, unit in (measure for case in cases for measure in case["measured"]):
        values[name] = max(values.get(name, (value, unit)), (value, unit))
    parts += [f"{name} {value:.3g} {unit}".strip() for name, (value, unit) in values.items()]
    return "; ".join([*parts, f"{sum(case['seconds'] for case in cases):.1f} s"])


def table(tests: Iterable[MarkedTest], results: dict[str, dict[str, Any]]) -> str:
    tests = list(tests)
    lines: list[str] = []
    for kind in (*(kind for kind, _ in KINDS), OTHERS):
        rows = sorted((t for t in tests if kind_of(t) == kind), key=lambda t: (t.what.lower(), t.test))
        if rows:
            lines += ["", f"### {kind}", "", f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
        for t in rows:
            cells = [t.what, t.does, t.lost or "nothing", f"`{t.test}`", what_was_seen(cases_of(t, results))]
            lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def named_tests(text: str) -> list[str]:
    """The tests that the table names, in its order."""
    _, _, rest = text.partition(BEGIN)
    return ROW.findall(rest.partition(END)[0])


def with_table(text: str, written: str) -> str:
    """The page with another table. Raises ValueError without its two marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} has no lines `{BEGIN}` and `{END}`, between which the table stands.")
    return f"{before}{BEGIN}\n{written}\n{END}{after}"


def main(file: str) -> int:
    results = json.loads(Path(file).read_text())
    tests = marked_tests()
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), table(tests, results)), encoding="utf-8")
    missing = [test.test for test in tests if not cases_of(test, results)]
    failed = [name for name, result in results.items() if result["outcome"] == "failed"]
    print(f"{PAGE.relative_to(REPOSITORY)}: {len(tests)} faults, {len(results)} cases, {len(failed)} failed")
    for name in missing:
        print(f"  not run: {name}")
    return 1 if missing or failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
