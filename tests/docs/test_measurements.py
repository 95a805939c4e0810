"""Tables of measurements are what their files give; what is named exists; whether an aim is reached is computed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.benchmarks import __main__ as program
from tests.benchmarks.__main__ import KEPT, is_due, remaining
from tests.benchmarks.listed import RUNS
from tests.benchmarks.recording import REPOSITORY, Table, at_least, at_most, spread
from tests.benchmarks.write_page import ALL, DOCS, MARKED, block, measurements, pages

PERFORMANCE = DOCS / "performance.md"
VERDICT = re.compile(r"\b(missed|reached|not met|is met)\b")
MADE = {
    "command": "replay",
    "finished": "2026-01-02T03:04:05+00:00",
    "seconds": 61,
    "load": [1.5, 2.5],
    "machine": {"processor": "Abacus", "cores": 2},
    "versions": {"torch": "2.0"},
    "tables": [{"columns": ["a"], "rows": [[0.5]], "title": "T:"}],
}


def marks() -> list[str]:
    return [name for page in DOCS.rglob("*.md") for _, name, _ in MARKED.findall(page.read_text(encoding="utf-8"))]


def test_pages_are_what_the_files_give():
    for page, text in pages().items():
        again = "Type: python -m tests.benchmarks.write_page"
        assert page.read_text(encoding="utf-8") == text, (
            f"{page.relative_to(REPOSITORY)} is not what docs/measurements says. {again}"
        )


def test_every_measurement_stands_on_one_page():
    assert sorted(marks()) == sorted([ALL, *RUNS])


def test_files_are_of_the_commands_that_are_listed():
    """A file of another command, or of a benchmark that is gone, would be shown as if it could be made again."""
    known = measurements()
    assert known and {name: made["command"] for name, made in known.items()} == {name: RUNS[name] for name in known}


@pytest.mark.parametrize("name", RUNS)
def test_commands_are_those_of_benchmarks(name):
    module, *options = shlex.split(RUNS[name])
    benchmark = import_module(f"tests.benchmarks.{module}")
    assert callable(benchmark.measure) and benchmark.parser().parse_args(options)


def test_no_verdict_is_typed_where_tables_are_written():
    """What `performance.md` says of aims stands between its marks, or in a table that was made by hand."""
    prose = [line for line in MARKED.sub("", PERFORMANCE.read_text(encoding="utf-8")).splitlines() if not line.startswith("|")]
    assert [line for line in prose if VERDICT.search(line) and "is computed" not in line] == []


def test_an_aim_is_judged_by_its_column():
    rows = [
        ["slow", spread([1.2, 1.4, 1.3]), at_most(1.25, "ratio")],
        ["fast", spread([1.2, 1.1, 9.0]), at_most(1.25, "ratio")],
        ["low", 0.94, at_least(0.95, "ratio")],
        ["even", 0.95, at_least(0.95, "ratio")],
        ["empty", None, at_least(0.95, "ratio")],
    ]
    assert Table(["way", "ratio", "aim"], rows, "Ways:").markdown().splitlines()[4:] == [
        "| slow | 1.30 (1.20 to 1.40) | at most 1.25: missed |",
        "| fast | 1.20 (1.10 to 9.00) | at most 1.25: reached |",
        "| low | 0.94 | at least 0.95: missed |",
        "| even | 0.95 | at least 0.95: reached |",
        "| empty |  |  |",
    ]


def test_numbers_have_three_digits():
    (line,) = Table(list("abcdefg"), [[7, 1234.6, 12.34, 1.234, 0.1234, 0.01234, 0.0]]).markdown().splitlines()[2:]
    assert line == "| 7 | 1,235 | 12.3 | 1.23 | 0.12 | 0.012 | 0.00 |"


def test_a_block_says_how_it_was_made():
    assert block("replay", {}) == "Not measured yet. Type: `python -m tests.benchmarks --only replay`"
    assert block("replay", {"replay": MADE}) == (
        "T:\n\n| a |\n| --- |\n| 0.50 |\n\n"
        "`python -m tests.benchmarks.replay`, 2026-01-02, 61 s (Abacus, 2 cores, load 1.5 before and 2.5 after; torch 2.0)."
    )
    with pytest.raises(ValueError, match="replai --> is not a measurement"):
        block("replai", {"replay": MADE})


def test_a_run_goes_on_with_what_is_not_made():
    now = datetime.fromisoformat(MADE["finished"]) + timedelta(hours=1)
    assert is_due("replay", None, now) and is_due("replay --more", MADE, now) and is_due("replay", MADE, now + KEPT)
    assert not is_due("replay", MADE, now) and now.tzinfo == UTC


def test_the_time_that_is_left_is_that_of_the_last_measurements():
    known = {"replay": MADE, "merge": {**MADE, "seconds": 180}}
    assert remaining(["replay", "merge"], known) == "about 4 min left"
    assert remaining(["replay", "balance"], known) == "about 1 min left, 1 not timed yet"
    assert remaining(["balance"], known) == "1 not timed yet"


def test_a_measurement_is_kept_only_when_it_was_made(tmp_path, monkeypatch):
    codes = iter([0, 1])

    def played(command: list[str], **_) -> subprocess.CompletedProcess:
        assert command[1:4] == ["-m", "tests.benchmarks.merge", "--write"]
        Path(command[4]).write_text(json.dumps(MADE["tables"]))
        return subprocess.CompletedProcess(command, next(codes))

    monkeypatch.setattr(program, "FOLDER", tmp_path)
    monkeypatch.setattr(program, "subprocess", SimpleNamespace(run=played))
    assert program.make("merge")
    kept = json.loads((tmp_path / "merge.json").read_text())
    assert kept.keys() == MADE.keys() and (kept["command"], kept["tables"]) == ("merge", MADE["tables"])
    assert kept["machine"]["processor"] and kept["versions"]["deepspeed"] and len(kept["load"]) == 2
    (tmp_path / "merge.json").unlink()
    assert not program.make("merge") and not (tmp_path / "merge.json").exists()
