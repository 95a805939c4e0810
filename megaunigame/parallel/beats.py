"""Heartbeats of ranks, and what they say about a run that does not go on: pure functions of what was heard."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

LOOKS, OFTEN = 30, 20
"""A rank is slow when the others waited for it in so many of the last looks."""
SLOW_START = 4
"""Before the first step, libraries and allocations can keep a whole process busy: so many times longer silence is allowed."""


@dataclass(frozen=True)
class Beat:
    """What a rank says about itself every few seconds."""

    rank: int
    host: str
    pid: int
    number: int
    """Counts the beats of the rank, so that a repeated one is noticed."""
    step: int
    phase: str
    in_step: bool
    marks: int
    """The same on ranks that are at the same place of the program."""
    age: float
    """Seconds since its last mark."""
    waits: float
    """Seconds it has been seen waiting in collectives since its last mark; 0: it was not, at the last look."""
    leaves: bool = False
    """Its last beat: it ends as planned, or says itself why it does not."""
    asked: bool = False
    """It, or a rank that it heard of, was asked to stop."""

    def as_text(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_text(cls, text: str | bytes) -> Beat:
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Heard:
    """The newest beat of a rank, and the seconds since it came."""

    beat: Beat
    silence: float


@dataclass(frozen=True)
class Limits:
    """Seconds."""

    silence: float
    """Without a beat: its process is stopped or dead, or its node is out of reach."""
    stall: float
    """In a collective, or in one phase of a step. Below the limit of a collective, which would end the run without a name."""


@dataclass(frozen=True)
class Verdict:
    """Why a run ends."""

    text: str
    """Names ranks, hosts, and where they are."""
    ranks: tuple[int, ...]
    """Those that are the reason."""
    failed: bool = False
    """The rank itself says so: it ends with an error. Other ranks may be about to end with the same one."""

    def as_text(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_text(cls, text: str | bytes) -> Verdict:
        said = json.loads(text)
        return cls(said["text"], tuple(said["ranks"]), said["failed"])


def lost(heard: Sequence[Heard], limits: Limits) -> Verdict | None:
    """About ranks that have fallen silent. Before the first step a rank may be silent longer, while it reads libraries."""
    begun = any(h.beat.step for h in heard)
    silent = [h for h in heard if h.silence > limits.silence * (1 if begun else SLOW_START) and not h.beat.leaves]
    if not silent:
        return None
    text = "; ".join(
        f"{_names([h.beat for h in group])} not been heard for {max(h.silence for h in group):.0f} s, last seen in "
        f"{_where(group[0].beat)}"
        for group in _by_place(silent)
    )
    return Verdict(text, tuple(h.beat.rank for h in silent))


def stalled(heard: Sequence[Heard], limits: Limits) -> Verdict | None:
    """About ranks that did not arrive where others wait; None: all go on, or nothing has waited long enough."""
    beats = [h.beat for h in heard if not h.beat.leaves]
    if not any(b.waits > limits.stall or (b.in_step and b.age > limits.stall) for b in beats):
        return None
    late = _late(beats)
    waiting = [b for b in beats if b not in late]
    if not waiting and len(beats) > 1:
        age = max(b.age for b in beats)
        text = f"all ranks have been in {_where(beats[0])} for {age:.0f} s: a collective or the device does not come to an end"
        return Verdict(text, tuple(b.rank for b in beats))
    said = [f"{_names(group)} been in {_where(group[0])} for {max(b.age for b in group):.0f} s" for group in _groups(late)]
    for group in _groups(waiting):
        said.append(f"{_numbers(group)} {'wait' if len(group) > 1 else 'waits'} in {_where(group[0])}")
    return Verdict("; ".join(said), tuple(b.rank for b in late))


def _late(beats: Sequence[Beat]) -> list[Beat]:
    """Those that the others wait for; all, where that cannot be told."""
    working = [b for b in beats if not b.waits]
    if working and len(working) < len(beats):
        return working
    first = min((b.step, b.marks) for b in beats)
    return [b for b in beats if (b.step, b.marks) == first]


class SlowRanks:
    """Finds ranks that the others wait for most of the time, by looking again and again."""

    def __init__(self) -> None:
        self._looks: deque[tuple[int, str] | None] = deque(maxlen=LOOKS)
        self._named: set[int] = set()

    def look(self, heard: Sequence[Heard]) -> str:
        """A line about a slow rank, once for each; else empty."""
        beats = [h.beat for h in heard]
        working = [b for b in beats if not b.waits]
        alone = len(working) == 1 and len(beats) > 1 and all(b.in_step for b in beats)
        self._looks.append((working[0].rank, working[0].phase) if alone else None)
        ranks = Counter(look[0] for look in self._looks if look is not None)
        rank, times = ranks.most_common(1)[0] if ranks else (-1, 0)
        if times < OFTEN or rank in self._named:
            return ""
        self._named.add(rank)
        beat = next(b for b in beats if b.rank == rank)
        phases = Counter(look[1] for look in self._looks if look is not None and look[0] == rank)
        return (
            f"rank {rank} on {beat.host} slows the run down: in {times} of the last {LOOKS} looks all others waited for it, "
            f"most often in '{phases.most_common(1)[0][0]}'"
        )


def _where(beat: Beat) -> str:
    return f"'{beat.phase}' of step {beat.step}" if beat.in_step else f"'{beat.phase}' after step {beat.step}"


def _by_place(heard: Sequence[Heard]) -> list[list[Heard]]:
    """Silent ranks of one host and one place together: a node that is cut off is one line."""
    groups: dict[tuple[str, str], list[Heard]] = {}
    for h in heard:
        groups.setdefault((h.beat.host, _where(h.beat)), []).append(h)
    return list(groups.values())


def _groups(beats: Sequence[Beat]) -> list[list[Beat]]:
    groups: dict[str, list[Beat]] = {}
    for beat in beats:
        groups.setdefault(_where(beat), []).append(beat)
    return list(groups.values())


def _names(beats: Sequence[Beat]) -> str:
    """`rank 5 on node7 (pid 12) has`, `ranks 0-3, 5 on a, b have`."""
    hosts = ", ".join(dict.fromkeys(b.host for b in beats))
    pid = f" (pid {beats[0].pid})" if len(beats) == 1 else ""
    return f"{_numbers(beats)} on {hosts}{pid} {'has' if len(beats) == 1 else 'have'}"


def _numbers(beats: Sequence[Beat]) -> str:
    return spelled([b.rank for b in beats])


def spelled(ranks: Sequence[int]) -> str:
    """`rank 3`; `ranks 0-4, 6`."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    text = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"rank {text}" if len(ranks) == 1 else f"ranks {text}"
