"""The samples that a run has replaced: `quarantine.jsonl` in its folder, a line per sample or lost shard."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megaunigame.data.loading.bad_samples import BadSample
from megaunigame.monitoring.replaced import QUARANTINE_FILE
from megaunigame.parallel.ranks import Ranks
from megaunigame.parallel.together import raise_together
from megaunigame.storage.json_lines import as_lines, read_lines
from megaunigame.storage.whole_files import write_whole

MOST = 10_000
"""Lines; what is replaced after that is counted only."""

log = logging.getLogger(__name__)


class Quarantine:
    """Every bad sample of all ranks once: step (of the run, from 1), stream, shard, key (empty: a whole shard), position and
    reason. Rank 0 writes."""

    def __init__(self, folder: Path, world: Ranks, *, fresh: bool):
        """`fresh`: the run begins at its first step, so the lines of another run do not count."""
        self.path, self.world = folder / QUARANTINE_FILE, world
        self.last: dict[str, dict[str, Any]] = {}
        """On rank 0: stream -> the line of its last bad sample, of any rank."""
        self.known: set[tuple[str, str, str]] = set()
        if world.is_main and self.path.exists():
            earlier = [] if fresh else read_lines(self.path)
            write_whole(self.path, as_lines(earlier))  # without the half of a line that a crash has left
            self.known = {_name(line) for line in earlier if {"stream", "shard", "key"} <= line.keys()}

    def add(self, step: int, bad: Sequence[BadSample]) -> None:
        """Collective, for steps in which some rank has bad samples. Raises OSError on rank 0, and what
        `raise_all` makes of it on the others."""
        mine = [
            {"step": step, "stream": b.stream, "shard": b.shard, "key": b.key, "position": b.position, "reason": b.reason}
            for b in bad
        ]
        gathered = [line for lines in self.world.gather_object(mine) for line in lines]
        self.last |= {line["stream"]: line for line in gathered}
        problem: OSError | None = None
        if self.world.is_main:
            try:
                self._append(gathered)
            except OSError as error:
                problem = OSError(error.errno, error.strerror, str(self.path))
        raise_together(self.world, problem)

    def _append(self, lines: Sequence[dict[str, Any]]) -> None:
        fresh = []
        for line in lines:
            if _name(line) not in self.known and len(self.known) < MOST:
                self.known.add(_name(line))
                fresh.append(line)
                if len(self.known) == MOST:
                    log.warning("%s is full: what is replaced from here on is counted only.", self.path)
        if fresh:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(as_lines(fresh))


def _name(line: dict[str, Any]) -> tuple[str, str, str]:
    return line["stream"], line["shard"], line["key"]
