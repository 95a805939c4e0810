"""A shard that cannot be reached: it is tried again for a while; then the run stops, or goes on without it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from megaunigame.errors import DataError, Interrupted, LostShard, MissingShard

T = TypeVar("T")
FIRST_PAUSE = 1.0
"""Seconds; each later pause is twice as long."""
LONGEST_PAUSE = 30.0
LOOK = 0.5
"""Seconds after which a process in a pause looks whether the run was asked to stop."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LostShardRule:
    """What a recipe says."""

    wait: float
    """Seconds for which a shard is tried again."""
    period: float
    """In this many seconds a process waits for `wait` seconds in all, however many shards are lost: other ranks wait for it."""
    substitute: bool
    """Whether the run goes on without the shard."""


STOP_AT_ONCE = LostShardRule(wait=0.0, period=0.0, substitute=False)


class LostShards:
    """The lost shards of one process."""

    def __init__(
        self, rule: LostShardRule, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ):
        self.rule, self._clock, self._sleep = rule, clock, sleep
        self.stopping: Callable[[], bool] = lambda: False
        """Whether the run was asked to stop: then a wait is left."""
        self._lost: set[tuple[str, str]] = set()
        """Stream and shard; they are tried once whenever they are needed, without waiting."""
        self._waits: list[tuple[float, float]] = []
        """Beginning and seconds of each wait of this process that began in the last period."""

    def reach(self, stream: str, work: Callable[[], T]) -> T:
        """The result of `work`, which is done again while it raises LostShard and there is time left.

        Then raises that LostShard, if the run goes on without the shard, else MissingShard. Raises Interrupted when the run was
        asked to stop meanwhile.
        """
        try:
            return work()
        except LostShard as error:
            if (stream, error.shard) in self._lost:
                raise
            problem = error
        began = self._clock()
        try:
            return self._again(stream, work, problem, began + self._allowed(began))
        except LostShard as error:
            raise self._given_up((stream, error.shard), error, self._clock() - began) from error
        finally:
            if self._clock() > began:
                self._waits.append((began, self._clock() - began))

    def _again(self, stream: str, work: Callable[[], T], problem: LostShard, end: float) -> T:
        """The result of further attempts until `end`. Raises LostShard."""
        pause = FIRST_PAUSE
        while (left := end - self._clock()) > 0 and (stream, problem.shard) not in self._lost:
            log.warning("Stream %s: %s Trying again for %.0f s.", stream, problem, left)
            self._pause(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE)
            try:
                done = work()
            except LostShard as error:
                problem = error
            else:
                log.warning("Stream %s: %s is back.", stream, problem.shard)
                return done
        raise problem

    def _pause(self, seconds: float) -> None:
        end = self._clock() + seconds
        while (left := end - self._clock()) > 0 and not self.stopping():
            self._sleep(min(LOOK, left))
        if self.stopping():
            raise Interrupted("left while a shard is lost")

    def _allowed(self, now: float) -> float:
        """Seconds that a wait may take: what the waits that began in the last period have left."""
        self._waits = [(began, seconds) for began, seconds in self._waits if now - began < self.rule.period]
        return self.rule.wait - sum(seconds for _, seconds in self._waits)

    def _given_up(self, name: tuple[str, str], error: LostShard, waited: float) -> DataError:
        if self.rule.substitute:
            if name not in self._lost:
                self._lost.add(name)
                log.warning("Stream %s: %s is lost; samples of other shards take the places of its samples.", *name)
            return error
        return MissingShard(
            f"Stream {name[0]!r}: {error} It was tried again for {waited:.0f} s. When it is there, the same "
            "command resumes from the newest checkpoint; with loader.lost_shard=substitute the run goes on without the shard."
        )
