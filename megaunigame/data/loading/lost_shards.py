"""A shard that cannot be reached: it is tried again for a while; then the run stops, or goes on without it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from megaunigame.errors import DataError, LostShard

T = TypeVar("T")
FIRST_PAUSE = 1.0
"""Seconds; each later pause is twice as long."""
LONGEST_PAUSE = 30.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LostShardRule:
    """What a recipe says."""

    wait: float
    """Seconds for which a shard is tried again."""
    period: float
    """In this many seconds a process waits at most once, however many shards are lost: other ranks wait for it."""
    substitute: bool
    """Whether the run goes on without the shard."""


STOP_AT_ONCE = LostShardRule(wait=0.0, period=0.0, substitute=False)


class LostShards:
    """The lost shards of one process."""

    def __init__(
        self, rule: LostShardRule, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ):
        self.rule, self._clock, self._sleep = rule, clock, sleep
        self._lost: set[tuple[str, str]] = set()
        """Stream and shard; they are tried once whenever they are needed, without waiting."""
        self._began = -math.inf
        """When this process last began to wait."""

    def reach(self, stream: str, work: Callable[[], T]) -> T:
        """The result of `work`, which is done again while it raises LostShard and there is time left.

        Then raises that LostShard, if the run goes on without the shard, else DataError.
        """
        pause, waited = FIRST_PAUSE, ""
        while True:
            try:
                done = work()
            except LostShard as error:
                name, problem = (stream, error.shard), error
            else:
                if waited:
                    log.warning("Stream %s: %s is back.", stream, waited)
                return done
            left = 0.0 if name in self._lost else self._time_left()
            if left <= 0:
                raise self._given_up(name, problem) from problem
            log.warning("Stream %s: %s Trying again for %.0f s.", stream, problem, left)
            self._sleep(min(pause, left))
            pause, waited = min(2 * pause, LONGEST_PAUSE), problem.shard

    def _time_left(self) -> float:
        """Seconds."""
        now = self._clock()
        if now - self._began >= self.rule.period:
            self._began = now
        return self._began + self.rule.wait - now

    def _given_up(self, name: tuple[str, str], error: LostShard) -> DataError:
        if self.rule.substitute:
            if name not in self._lost:
                self._lost.add(name)
                log.warning("Stream %s: %s is lost; samples of other shards take the places of its samples.", *name)
            return error
        return DataError(
            f"Stream {name[0]!r}: {error} It was tried again for {self.rule.wait:.0f} s. When it is there, the same "
            "command resumes from the newest checkpoint; with loader.lost_shard=substitute the run goes on without the shard."
        )
