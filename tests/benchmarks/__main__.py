"""Runs the measurements of the documents, one after another, and writes their tables: `make benchmarks`.

python -m tests.benchmarks [--only NAME...] [--again]

A measurement is kept as soon as it is made, in docs/measurements/NAME.json. Started again, the program goes on with those that
were not made with the same command in the last 24 hours. Other work on the machine shows in the load that is noted.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.benchmarks.listed import RUNS
from tests.benchmarks.recording import FOLDER, REPOSITORY, machine, versions
from tests.benchmarks.write_page import measurements, write

KEPT = timedelta(hours=24)
ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def is_due(command: str, known: Mapping[str, Any] | None, now: datetime) -> bool:
    """Whether a measurement must be made: never made, made in another way, or longer ago than `KEPT`."""
    return known is None or known["command"] != command or now - datetime.fromisoformat(known["finished"]) > KEPT


def remaining(names: Sequence[str], known: Mapping[str, Mapping[str, Any]]) -> str:
    """How long these take, by their last measurements, as a clause."""
    timed = [known[name]["seconds"] for name in names if name in known]
    left = [f"about {max(1, round(sum(timed) / 60))} min left"] if timed else []
    left += [f"{len(names) - len(timed)} not timed yet"] if len(timed) < len(names) else []
    return ", ".join(left)


def make(name: str) -> bool:
    """Run one measurement and keep it; False when it failed."""
    began, load = time.monotonic(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tables.json"
        module, *options = shlex.split(RUNS[name])
        command = [sys.executable, "-m", f"tests.benchmarks.{module}", *options, "--write", str(file)]
        if subprocess.run(command, cwd=REPOSITORY, env=os.environ | ENVIRONMENT).returncode or not file.exists():
            print(f"{name} failed; nothing of it was kept.", file=sys.stderr)
            return False
        tables = json.loads(file.read_text())
    kept = {
        "command": RUNS[name],
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began),
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        "machine": machine(),
        "versions": versions(),
        "tables": tables,
    }
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), metavar="NAME", help=", ".join(RUNS))
    parser.add_argument("--again", action="store_true", help="also those of the last 24 hours")
    options = parser.parse_args()
    known, now, failed = measurements(), datetime.now(UTC), []
    due = [name for name in options.only if options.again or is_due(RUNS[name], known.get(name), now)]
    print(f"{len(due)} of {len(options.only)} measurements to make")
    for number, name in enumerate(due):
        print(f"\n[{number + 1}/{len(due)}] {name}; {remaining(due[number:], known)}", flush=True)
        if not make(name):
            failed.append(name)
        write()
    if failed:
        print(f"Failed: {' '.join(failed)}. Type: python -m tests.benchmarks --only {' '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
