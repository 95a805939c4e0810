"""A run that trains nothing: `python fake_train.py FOLDER SEED STEPS BEHAVIOR SECONDS` writes what a real one leaves.

Behaviors: `good`; `fails` (says why, exit code 1); `stops_early` (finishes before its last step);
`interrupted` (as after a polite kill in the last evaluation, exit code 75);
`waits` (until SIGTERM, then "saves" from a child, which outlives it for a moment).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megaunigame.sweeping.runs import Run


def fake_command(run: Run, behavior: str = "good", seconds: float = 0.0) -> list[str]:
    """The command line of this script for a run of a sweep."""
    return [sys.executable, __file__, str(run.folder), str(run.seed), str(run.steps), behavior, str(seconds)]


def event(folder: Path, what: str) -> None:
    """One line in the sweep's folder, in the order of things."""
    with open(folder.parents[1] / "events", "a") as events:
        events.write(f"{what} {folder.parent.name}/{folder.name}\n")


def main() -> None:
    folder, behavior = Path(sys.argv[1]), sys.argv[4]
    seed, steps, seconds = int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[5])
    event(folder, "start")
    print(f"threads {os.environ['OMP_NUM_THREADS']}", flush=True)
    if behavior == "fails":
        sys.exit("line one\nnot enough memory")
    if behavior == "waits":
        if os.fork() == 0:  # the rank below the launcher
            signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), (folder / "saved").touch(), os._exit(0)))
            (folder / "ready").touch()
        while True:
            time.sleep(60)
    time.sleep(seconds)
    last = steps - 1 if behavior == "stops_early" else steps
    lines = [
        {"step": 0, "time": 0.0, "evaluation/q/accuracy/mean": 0.1},
        {"step": last, "time": 1.0, "loss/total": 2.0 + seed},
        {"step": last, "time": 2.0, "evaluation/q/accuracy/mean": 0.5 + 0.1 * seed},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    finished = None if behavior == "interrupted" else "2026-01-01T00:00:00+00:00"
    (folder / "run.json").write_text(json.dumps({"finished": finished, "seconds": 2.0}))
    event(folder, "end")
    sys.exit(75 if behavior == "interrupted" else 0)


if __name__ == "__main__":
    main()
