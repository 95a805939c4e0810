"""What one rank finds about the others: from their beats, from the line to rank 0, and from the processes of its machine."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence

from megaunigame.parallel.beats import SLOW_START, Beat, Heard, Limits, SlowRanks, Verdict, lost, stalled
from megaunigame.parallel.heart import Heart
from megaunigame.parallel.home import Home
from megaunigame.parallel.processes import GONE, LIVES, state_of

BROKEN_SECONDS = 10.0
"""From the end of the line to the end of the run: what caused it may still become known."""
log = logging.getLogger(__name__)


class Lookout:
    """Of one rank. Nothing in here waits."""

    def __init__(self, heart: Heart, homes: Sequence[Home], limits: Limits, state_of: Callable[[int], str] = state_of):
        """`homes`: of all ranks, in rank order."""
        self.heart, self.homes, self.limits, self.state_of = heart, homes, limits, state_of
        self.home, self.clock = heart.home, heart.pulse.clock
        self.left: Callable[[int], bool] = lambda rank: False
        """Whether a rank whose process has ended had said that it leaves."""
        self.broken = ""
        """What the line to rank 0 died of."""
        self._heard: dict[int, tuple[Beat, float]] = {}
        """Rank -> its newest beat, and when it came."""
        self._answered = self._checked = self.clock()
        self._slow = SlowRanks()

    def hear(self, beats: Sequence[Beat]) -> None:
        """An answer over the line."""
        now = self.clock()
        self._answered = now
        if any(beat.asked for beat in beats):
            self.heart.pulse.stopping = True
        for beat in beats:
            old = self._heard.get(beat.rank)
            if old is None or old[0].number != beat.number:
                self._heard[beat.rank] = (beat, now)
        if self.home.rank == 0:
            line = self._slow.look([Heard(beat, 0.0) for beat, _ in list(self._heard.values())])
            if line:
                log.warning("%s.", line)

    def find(self, every: float) -> Verdict | None:
        """Why the run cannot go on; None: as far as this rank sees, it can. Called about every `every` seconds."""
        self._forgive(every)
        heard = [Heard(beat, self.clock() - came) for beat, came in list(self._heard.values())]
        found = self._ended() or self._cut_off() or self._silent(heard)
        if found is not None:
            return found
        if self.home.rank == 0 and heard:
            return stalled(heard, self.limits)
        # Rank 0 sees more, and has said so before this one does; or it is the one that does not look any more.
        patience = self.limits.silence if len(self.homes) > 1 else 0.0
        return stalled([Heard(self.heart.beat(), 0.0)], dataclasses.replace(self.limits, stall=self.limits.stall + patience))

    def _forgive(self, every: float) -> None:
        """What this process did not hear while it did not run itself (a paused machine) says nothing about others."""
        now = self.clock()
        missed = now - self._checked - every
        self._checked = now
        if missed > self.limits.silence / 2:
            self._answered += missed
            self._heard = {rank: (beat, came + missed) for rank, (beat, came) in self._heard.items()}

    def _ended(self) -> Verdict | None:
        """Ranks of this machine whose processes are gone."""
        for home in self.homes:
            if home.rank != self.home.rank and self.home.sees(home) and self.state_of(home.pid) == GONE:
                if not self.left(home.rank):
                    return Verdict(f"{home} has ended{self._last_place(home.rank)}", (home.rank,))
        return None

    def _last_place(self, rank: int) -> str:
        if rank not in self._heard:
            return ""
        beat = self._heard[rank][0]
        return f", last seen in '{beat.phase}' of step {beat.step}"

    def _cut_off(self) -> Verdict | None:
        """This rank has no line to rank 0: that one, its node, or the network between them is gone."""
        silence = self.clock() - self._answered
        if len(self.homes) == 1 or silence < (BROKEN_SECONDS if self.broken else self._silence_limit()):
            return None
        first = self.homes[0]
        reason = f"the line to it broke: {self.broken}" if self.broken else "its node or the network is gone, or it is stopped"
        state = self.state_of(first.pid) if self.home.sees(first) else LIVES
        reason = reason if state == LIVES else f"its process {state}"
        return Verdict(f"{first} cannot be reached for {silence:.0f} s ({reason}){self._last_place(0)}", (0,))

    def _silence_limit(self) -> float:
        return self.limits.silence * (SLOW_START if self.heart.pulse.look().step == 0 else 1)

    def _silent(self, heard: Sequence[Heard]) -> Verdict | None:
        found = lost(heard, self.limits)
        if found is None:
            return None
        near = [home for home in self.homes if home.rank in found.ranks and self.home.sees(home)]
        states = {f"rank {home.rank}": self.state_of(home.pid) for home in near}
        known = "".join(f"; the process of {rank} {state}" for rank, state in states.items() if state != LIVES)
        return dataclasses.replace(found, text=found.text + known)
