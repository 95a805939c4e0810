"""Pytest plugin: writes what became of every test marked `fault`, for docs/reliability.md.

pytest -m 'fault or faults' --fault-results=FILE
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Measure = Callable[..., None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-results", metavar="FILE", help="write outcome, time and measured values of tests marked `fault`")


def pytest_configure(config: pytest.Config) -> None:
    file = config.getoption("--fault-results")
    if file:
        config.pluginmanager.register(Recorder(Path(file)))


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measure:
    """`measured("survivors ended after", 2.1, "s")` notes a number for the table of docs/reliability.md. The largest counts
    when a test, or several cases of one, note the same name."""

    def note(name: str, value: float, unit: str = "") -> None:
        request.node.user_properties.append(("measured", [name, float(value), unit]))

    return note


class Recorder:
    """Collects the reports of marked tests, and writes them at the end, also of a run that was interrupted."""

    def __init__(self, file: Path):
        self.file = file
        self.marked: set[str] = set()
        self.results: dict[str, dict[str, Any]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.marked = {item.nodeid for item in items if item.get_closest_marker("fault")}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.nodeid not in self.marked:
            return
        result = self.results.setdefault(report.nodeid, {"outcome": "passed", "seconds": 0.0, "measured": []})
        result["seconds"] += report.duration
        if report.outcome != "passed":
            result["outcome"] = report.outcome
            if report.skipped and isinstance(report.longrepr, tuple):
                result["reason"] = str(report.longrepr[2])
        if report.when == "teardown":
            result["measured"] = [value for name, value in report.user_properties if name == "measured"]

    def pytest_sessionfinish(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(self.results, indent=1))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for line in self._summary():
            terminalreporter.write_line(line)

    def _summary(self) -> Iterator[str]:
        outcomes = [result["outcome"] for result in self.results.values()]
        counts = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in ("passed", "failed", "skipped"))
        yield f"faults: {len(outcomes)} cases, {counts}; written to {self.file}"
        for name, result in self.results.items():
            if result["outcome"] == "skipped":
                yield f"  not shown here: {name}: {result.get('reason', '')}"
