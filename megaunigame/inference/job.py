"""A job over the items of a file: its results reach one file, in the order of the items, whatever ends the process on the way.

    answers.jsonl            all results, one object a line; written at the end
    answers.jsonl.job/
        job.json             what must not change while the job goes on: the model, its settings
        part-00000-of-00002.jsonl    results of one rank, appended batch by batch
        lock                 held by rank 0

A result counts when its line is whole and was made of the same item; one with an error is tried again by the next launch.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megaunigame.errors import ConfigError
from megaunigame.inference.source import Source
from megaunigame.storage.json_files import read_object
from megaunigame.storage.json_lines import read_lines
from megaunigame.storage.room import room_for
from megaunigame.storage.whole_files import write_whole

FORMAT = 2
"""1: results without the sha256 of their picture."""
ERROR = "error"
"""Key of a result that says what is wrong with its item."""
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""What a file system answers that has no locks."""


def digest_of(item: Any) -> str:
    """Tells an item from a changed one; `item`: bytes, or what can be JSON."""
    content = item if isinstance(item, bytes) else json.dumps(item).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def identity_of(command: str, source: Source, settings: Any, loading: Mapping[str, Any]) -> dict[str, Any]:
    """What results depend on besides their items: option or property -> value. `loading`: how the model is loaded, likewise."""
    typed = {f"--{name.replace('_', '-')}": value for name, value in asdict(settings).items()}
    return {"command": command, "model": source.identity, **loading, **typed}


class Job:
    """Results of items 0, 1, 2, ... of which `digests` tell each from what it was before."""

    def __init__(
        self,
        out: Path,
        folder: Path,
        identity: Mapping[str, Any],
        digests: Sequence[str],
        holds: Callable[[dict[str, Any]], bool] = lambda result: True,
    ):
        """`out`: the file of all results. `folder`: the job's own. `identity`: option or property -> what it must stay.
        `holds`: whether what a result says is still there."""
        self.out, self.folder, self.digests, self._holds = out, folder, digests, holds
        self.identity = {"format": FORMAT, **identity}
        self._lock: int | None = None

    @property
    def description(self) -> dict[str, Any]:
        """What all ranks must agree on: the identity, and the items."""
        return {**self.identity, "input": digest_of(list(self.digests))}

    def begin(self) -> list[int]:
        """On rank 0: take the folder, and return the items that have no result yet.

        Raises ConfigError when the folder belongs to another job, another process works in it, or it cannot be written.
        """
        file = self.folder / "job.json"
        if not file.is_file() and self.out.exists():
            raise ConfigError(f"{self.out} is there already, and not from this job. Give another --out, or delete it.")
        with room_for("--out", self.out):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR)
        self._take(self._lock)
        if file.is_file():
            self._check(read_object(file, "the description of a job", ConfigError, f"Delete {self.folder} to begin again."))
        else:
            write_whole(file, json.dumps(self.identity, indent=1) + "\n")
        done = self.results()
        return [item for item in range(len(self.digests)) if item not in done or ERROR in done[item]]

    def close(self) -> None:
        """Give the folder back, which the end of the process does too."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def open_part(self, rank: int, size: int) -> Part:
        """Where this rank writes."""
        return Part(self.folder / f"part-{rank:05d}-of-{size:05d}.jsonl", self.digests)

    def results(self) -> dict[int, dict[str, Any]]:
        """Item -> its result, of all parts; of several, one without an error."""
        found: dict[int, dict[str, Any]] = {}
        for part in sorted(self.folder.glob("part-*.jsonl")):
            for line in read_lines(part):
                item, result = line.get("item"), line.get("result")
                if not isinstance(item, int) or not isinstance(result, dict) or not 0 <= item < len(self.digests):
                    continue
                counts = line.get("digest") == self.digests[item] and (ERROR in result or self._holds(result))
                if counts and (item not in found or ERROR in found[item]):
                    found[item] = result
        return found

    def merge(self) -> list[dict[str, Any]]:
        """Write `out`; returns the results in order. Raises ConfigError when one is missing: part of the folder was deleted."""
        found = self.results()
        if missing := [item for item in range(len(self.digests)) if item not in found]:
            raise ConfigError(
                f"{len(missing)} results are missing in {self.folder}, that of item {missing[0]} for example: somebody has "
                "deleted them. Give the same command again."
            )
        ordered = [found[item] for item in range(len(self.digests))]
        write_whole(self.out, "".join(json.dumps(result, ensure_ascii=False) + "\n" for result in ordered))
        return ordered

    def _take(self, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise ConfigError(f"Another process works on {self.out} now. Wait for it, or give another --out.") from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise

    def _check(self, before: Mapping[str, Any]) -> None:
        for name in {**self.identity, **before}:
            was, now = before.get(name), self.identity.get(name)
            if was != now:
                again = f"leave out {name}, " if was is None else f"type {name} {was} again, "
                again = again if name.startswith("--") else ""
                raise ConfigError(
                    f"{self.out} was begun with another {name}: {was} then, {now} now. To go on, {again}give another --out, or "
                    f"delete {self.folder} and {self.out} to begin again."
                )


class Part:
    """The results of one rank. A line is whole, or does not count."""

    def __init__(self, path: Path, digests: Sequence[str]):
        self.path, self.digests = path, digests
        if path.exists():  # the process that wrote it may have been killed within a line
            content = path.read_bytes()
            os.truncate(path, content.rfind(b"\n") + 1)
        self._file = open(path, "ab")  # noqa: SIM115

    def add(self, results: Iterable[tuple[int, dict[str, Any]]]) -> None:
        """(item, result): on the disk when this returns."""
        lines = ({"item": item, "digest": self.digests[item], "result": result} for item, result in results)
        self._file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())
