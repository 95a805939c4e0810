"""Record of a run, written at its beginning and its end: recipe, plan, command, versions, duration."""

from __future__ import annotations

import json
import logging
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from megaunigame.errors import DataError
from megaunigame.monitoring.report import write_report
from megaunigame.storage.json_files import read_object
from megaunigame.storage.whole_files import write_whole

log = logging.getLogger(__name__)

KEPT: dict[str, type | tuple[type, ...]] = {"sources": dict, "started": str, "launches": list, "seconds": (int, float)}
"""Entries of run.json that go on from launch to launch."""
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
        write_whole(folder / "recipe.yaml", recipe)
        write_whole(folder / "plan.txt", plan + "\n")
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
        """What an earlier launch recorded, as far as it is of the right kind: nothing in here may keep a run from going on."""
        if not self.file.exists():
            return {}
        try:
            found = read_object(self.file, "the record of a run", DataError, "Its times of earlier launches are lost.")
        except DataError as error:
            log.warning("%s", error)
            return {}
        odd = [name for name, kind in KEPT.items() if name in found and not isinstance(found[name], kind)]
        if odd:
            log.warning("%s: %s of earlier launches are garbage and are lost.", self.file, ", ".join(odd))
        return {name: found[name] for name in KEPT if name in found and name not in odd}

    def _write(self) -> None:
        write_whole(self.file, json.dumps(self.record, indent=1))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
