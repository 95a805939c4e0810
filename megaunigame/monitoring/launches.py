"""The launches of a run, and the steps of the history that each of them has made."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from datetime import datetime
from html import escape

from megaunigame.monitoring import names, page
from megaunigame.monitoring.history import RunFolder


@dataclass(frozen=True)
class Launch:
    """One start of the command on the run folder."""

    number: int
    """From 1."""
    began: datetime
    steps: list[int]
    """Ascending; empty when it was killed before its first step, or its steps were made again by a later launch."""


def launches_of(run: RunFolder) -> list[Launch]:
    """Told apart by the time of each line in metrics.jsonl: a step belongs to the last launch that began before it."""
    began = [datetime.fromisoformat(stamp) for stamp in run.run.get("launches", [])]
    ends = [*(stamp.timestamp() for stamp in began), float("inf")][1:]
    return [
        Launch(number, stamp, sorted(step for step, time in run.times.items() if step and stamp.timestamp() <= time < end))
        for number, (stamp, end) in enumerate(zip(began, ends, strict=True), start=1)
    ]


def seconds_of(run: RunFolder, launches: list[Launch]) -> float:
    """How long the launches took together, 0 if that is not known. Of one that was killed, until its last step."""
    known = sum(run.times[launch.steps[-1]] - launch.began.timestamp() for launch in launches if launch.steps)
    return max(known, run.run.get("seconds", 0.0))


def launches_section(run: RunFolder, launches: list[Launch]) -> list[page.Section]:
    """A table of the launches; nothing for a run that was launched once."""
    if len(launches) < 2:
        return []
    seconds = dict(zip(*run.series.get(names.PERF_STEP_SECONDS, ([], [])), strict=True))
    rows = []
    for launch in launches:
        ends = [f"{launch.steps[0]:,}", f"{launch.steps[-1]:,}"] if launch.steps else ["–", "–"]
        timed = [seconds[step] for step in launch.steps if step in seconds]
        median = f"{statistics.median(timed):.3f}" if timed else "–"
        stamp = escape(f"{launch.began:%Y-%m-%d %H:%M:%S %Z}".strip())
        rows.append([str(launch.number), stamp, *ends, f"{len(launch.steps):,}", median])
    columns = ["launch", "began", "first step", "last step", "steps", "s/step"]
    table = page.table(columns, rows, [True, False, True, True, True, True])
    return [page.Section("Launches", page.note("Dashed lines in the curves mark where a later launch begins.") + table)]
