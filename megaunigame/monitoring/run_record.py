"""Record of a run, written at its beginning and its end: recipe, plan, command, versions, duration."""

from __future__ import annotations

import json
import platform
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from megaunigame.monitoring.report import write_report

PACKAGES = ("megaunigame", "torch", "deepspeed", "transformers", "peft")


class RunRecord:
    """recipe.yaml, plan.txt and run.json of one run folder; written by rank 0."""

    def __init__(self, folder: Path, *, name: str, command: str, world_size: int, recipe: str, plan: str):
        self.folder = folder
        self.clock = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "run.json"
        earlier = json.loads(self.file.read_text()) if self.file.exists() else {}
        now = _now()
        self.record = {
            "name": name,
            "command": command,
            "world_size": world_size,
            "started": earlier.get("started", now),
            "launches": [*earlier.get("launches", []), now],
            "seconds": earlier.get("seconds", 0.0),
            "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
            "finished": None,
        }
        (folder / "recipe.yaml").write_text(recipe)
        (folder / "plan.txt").write_text(plan + "\n")
        self._write()

    def finish(self) -> Path:
        """Record the end and write report.html; returns its path."""
        self.record |= {"finished": _now(), "seconds": self.record["seconds"] + time.monotonic() - self.clock}
        self._write()
        return write_report(self.folder)

    def _write(self) -> None:
        self.file.write_text(json.dumps(self.record, indent=1))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
