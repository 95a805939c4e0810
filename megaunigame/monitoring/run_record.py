"""Record of a run, written at its beginning and its end: recipe, plan, command, versions, duration."""

from __future__ import annotations

import json
import logging
import platform
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from megaunigame.monitoring.report import write_report
from megaunigame.storage.whole_files import write_whole

log = logging.getLogger(__name__)

PACKAGES = ("megaunigame", "torch", "deepspeed", "transformers", "peft")


class RunRecord:
    """recipe.yaml, plan.txt and run.json of one run folder; written by rank 0."""

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        command: str,
        world_size: int,
        recipe: str,
        plan: str,
        origin: dict[str, str],
        sources: dict[str, str],
    ):
        """`origin`: where the first weights come from, by name; `sources`: folder of shards -> what it was packed from."""
        self.folder = folder
        self.clock = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "run.json"
        earlier = self._earlier()
        now = _now()
        self.record = {
            "name": name,
            "command": command,
            "directory": str(Path.cwd()),
            "origin": origin,
            "sources": {**earlier.get("sources", {}), **sources},
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

    def finish(self, *, complete: bool = True) -> Path:
        """Record the end and write report.html; returns its path. `complete`: False when a signal ended the run."""
        self.record |= {
            "finished": _now() if complete else None,
            "seconds": self.record["seconds"] + time.monotonic() - self.clock,
        }
        self._write()
        return write_report(self.folder)

    def _earlier(self) -> dict[str, Any]:
        """What an earlier launch recorded; a file that a full disk or a power cut has left incomplete is begun again."""
        try:
            return dict(json.loads(self.file.read_text())) if self.file.exists() else {}
        except (ValueError, TypeError) as error:
            log.warning("%s is incomplete (%s): times of earlier launches are lost.", self.file, error)
            return {}

    def _write(self) -> None:
        write_whole(self.file, json.dumps(self.record, indent=1))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
