"""The ranks of a job over a file. Each takes its part; they do not wait for each other until the end.

They meet at the store that a launcher names (torchrun, launch/node.py, deepspeed). There is no process group: a job makes no
collective, so one rank may have pictures that take ten times as long.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from megaunigame.errors import ConfigError, LostRankError
from megaunigame.parallel.environment import Place, place_of_process
from megaunigame.parallel.meeting import meet

MEET_SECONDS = 600.0
QUIET_SECONDS = 1800.0
"""A team whose count of done items does not change for so long has lost a rank."""
LOOK_SECONDS = 0.5
T = TypeVar("T")
ASSIGNMENT, DONE, FINISHED = "assignment", "done", "finished"
"""Keys of the store."""
CHUNK = 4 * 1024**2
"""Characters of a value. torchrun's store takes no value of more than 8 MiB."""


@dataclass(frozen=True)
class Team:
    """The ranks, seen from this one."""

    place: Place
    store: Any = None
    """None: no other process is there."""
    _alone: list[int] = field(default_factory=lambda: [0])
    """Done items, of a process without others."""

    @classmethod
    def join(cls) -> Team:
        """Raises MeetingError when ranks do not come, ConfigError for an environment that does not say which there are."""
        place = place_of_process()
        if place.size == 1:
            return cls(place)
        store = meet(place, MEET_SECONDS, from_recipe=False).store
        store.set_timeout(timedelta(seconds=MEET_SECONDS))
        return cls(place, store)

    @property
    def is_main(self) -> bool:
        return self.place.rank == 0

    def tell(self, job: Mapping[str, Any], pending: Sequence[int]) -> list[int]:
        """What rank 0 says is `pending`, on every rank; the argument of the others is not read.

        `job`: what this rank would do, property -> value. Raises ConfigError on a rank whose job is not that of rank 0: a
        checkpoint may have been saved, or a file changed, between the looks of two ranks.
        """
        if self.store is None:
            return list(pending)
        try:
            if self.is_main:
                self._put(json.dumps([dict(job), list(pending)]))
                return list(pending)
            told, items = json.loads(self._get())
        except dist.DistError as error:
            raise LostRankError("Rank 0 did not say what is to be done. Look at its messages.") from error
        for name, value in json.loads(json.dumps(dict(job))).items():
            if told.get(name) != value:
                raise ConfigError(
                    f"This rank would do another job than rank 0. Its {name}: {value}; that of rank 0: {told.get(name)}. The "
                    "ranks must see the same files; of a run that still trains, give one checkpoint: RUN/checkpoints/step-..."
                )
        return items  # type: ignore[no-any-return]

    def _put(self, text: str) -> None:
        """In pieces; their number comes last."""
        pieces = [text[start : start + CHUNK] for start in range(0, len(text), CHUNK)]
        for number, piece in enumerate(pieces):
            self.store.set(f"{ASSIGNMENT}/{number}", piece)
        self.store.set(ASSIGNMENT, str(len(pieces)))

    def _get(self) -> str:
        """What `_put` has put, once it is there: after rank 0 has checked the weights."""
        self.store.wait([ASSIGNMENT], timedelta(seconds=QUIET_SECONDS))
        return b"".join(self.store.get(f"{ASSIGNMENT}/{number}") for number in range(int(self.store.get(ASSIGNMENT)))).decode()

    def share(self, parts: Sequence[T]) -> list[T]:
        """Those of this rank: every W-th."""
        return list(parts[self.place.rank :: self.place.size])

    def count(self, done: int) -> int:
        """Add to the number of done items; returns that of all ranks together."""
        if self.store is not None:
            return self._add(DONE, done)
        self._alone[0] += done
        return self._alone[0]

    def finish(self, show: Callable[[int], None] = lambda done: None) -> None:
        """This rank has done its part, and its results are on the disk. Rank 0 returns when all ranks have; `show` is told
        meanwhile how many items are done."""
        if self.store is None:
            return
        finished, seen, since = self._add(FINISHED, 1), -1, time.monotonic()
        while self.is_main and finished < self.place.size:
            time.sleep(LOOK_SECONDS)
            finished, done = self._add(FINISHED, 0), self._add(DONE, 0)
            show(done)
            if done != seen:
                seen, since = done, time.monotonic()
            elif time.monotonic() - since > QUIET_SECONDS:
                raise LostRankError(
                    f"{self.place.size - finished} of {self.place.size} ranks have neither finished nor done anything for "
                    f"{QUIET_SECONDS:.0f} s. What is done is kept: give the same command again."
                )

    def _add(self, key: str, number: int) -> int:
        try:
            return int(self.store.add(key, number))
        except dist.DistError as error:
            raise LostRankError("The store of the ranks has ended, and rank 0 with it. Give the same command again.") from error
