"""A training whose ranks are killed again and again, each time started again with the same command."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megaunigame.monitoring import names
from tests.faults.launches import ForkServer, Launch
from tests.faults.moments import Moment

LONGEST_LAUNCH = 120.0
"""Seconds; loaded test machines included."""
SURVIVORS_END = 30.0
"""Seconds after a kill in which every other rank must have ended by itself."""
KILLED = -9
OF_RANK_0 = ("manifest", "before the rename", "before latest", "pruning", "while pruning", "metrics")
NUMBERS = {
    **{"start-up": 1, "loading": 1, "dry run": 1, "evaluation": 1, "merge": 2, "save": 2, "end of a save": 2, "metrics": 1},
    **{"forward": 6, "backward": 6, "update": 3, "step": 3, "file of a save": 4},
    **{"manifest": 1, "before the rename": 1, "before latest": 1, "pruning": 1, "while pruning": 3},
}
"""Moment of a kill -> the latest number of it that is drawn."""
NOT_AT_FIRST = ("loading", "pruning", "while pruning")
"""Moments that need checkpoints."""


def draw_moment(rng: random.Random, at: str, world: int) -> Moment:
    rank = 0 if at in OF_RANK_0 else rng.randrange(world)
    delay = rng.choice((0.0, rng.uniform(0.0, 0.05)))  # at the moment, or in the middle of what begins there
    return Moment(rank, at, rng.randint(1, NUMBERS[at]), "SIGKILL", delay)


def draw_rounds(seed: int, worlds: Sequence[int], moments: Sequence[str] = tuple(NUMBERS)) -> list[tuple[int, Moment]]:
    """Every moment once in a random order, each with a number of ranks out of `worlds`, neighbors differing where they can."""
    rng = random.Random(seed)
    order = rng.sample(list(moments), len(moments))
    order.sort(key=lambda at: at in NOT_AT_FIRST)  # stable
    rounds: list[tuple[int, Moment]] = []
    for at in order:
        before = rounds[-1][0] if rounds else None
        world = rng.choice([w for w in worlds if w != before] or list(worlds))
        rounds.append((world, draw_moment(rng, at, world)))
    return rounds


@dataclass
class Killed:
    """What a chain of killed launches went through."""

    kills: list[str] = field(default_factory=list)
    worlds: list[int] = field(default_factory=list)
    """Ranks of each launch."""
    survived: list[float] = field(default_factory=list)
    """Seconds from each kill to the end of the last other rank."""
    resumed: float | None = None
    """Seconds from the start of the last launch to the line of its first step; imports and start of Python are not in it."""

    @property
    def world_changes(self) -> int:
        return sum(a != b for a, b in zip(self.worlds, self.worlds[1:], strict=False))


def train_with_kills(
    server: ForkServer, command: Sequence[str], run: Path, rounds: Sequence[tuple[int, Moment]], last: int
) -> Killed:
    """Launch `command` once per round, killed at its moment, and then on `last` ranks to its end.

    Raises AssertionError when a launch ends in another way, when its survivors stay, or when it begins at an older step than
    the newest complete checkpoint.
    """
    history = Killed()
    for world, moment in rounds:
        newest = newest_step(run)
        launch = server.start(command, world, [moment])
        try:
            check_killed(launch, moment, history)
        finally:
            launch.kill()
        check_resumed(launch, newest)
        history.kills.append(moment.at)
        history.worlds.append(world)
    newest = newest_step(run)
    launch = server.start(command, last)
    try:
        history.resumed = launch.wait_for_step(LONGEST_LAUNCH)
        codes = launch.wait(LONGEST_LAUNCH)
    finally:
        launch.kill()
    assert set(codes.values()) == {0}, launch.said()
    check_resumed(launch, newest)
    history.worlds.append(last)
    return history


def check_killed(launch: Launch, moment: Moment, history: Killed) -> None:
    """The rank was killed at its moment, and the others end by themselves, not as if all were well."""
    launch.wait_for_first(LONGEST_LAUNCH)
    codes = launch.wait(SURVIVORS_END)
    assert codes[moment.rank] == KILLED, f"{moment} was not reached\n{launch.said()}"
    others = {rank: code for rank, code in codes.items() if rank != moment.rank}
    assert 0 not in others.values(), f"{moment}: a rank ended as if all were well\n{launch.said()}"
    history.survived += [max(0.0, launch.ended[rank] - launch.ended[moment.rank]) for rank in others]


def newest_step(run: Path) -> int | None:
    """The newest complete checkpoint of a run that never went back: `latest` may name an older one, and the newest may lack its
    name yet."""
    manifests = [*run.glob("checkpoints/step-*/manifest.json"), *run.glob("checkpoints/saving-step-*/manifest.json")]
    return max((int(re.sub(r".*step-(\d+).*", r"\1", file.parent.name)) for file in manifests), default=None)


def check_resumed(launch: Launch, newest: int | None) -> None:
    """A launch that got so far began where the newest complete checkpoint ends."""
    found = re.search(r"resuming from step (\d+)", launch.everything())
    if found:
        assert int(found[1]) == newest, f"a complete checkpoint of step {newest} was passed over\n{launch.said()}"
    else:
        assert newest is None or "rows per optimizer step" not in launch.everything(), (
            f"began at step 1 although there is a checkpoint of step {newest}\n{launch.said()}"
        )


# What two runs are compared by


def checkpoint_of(run: Path, step: int) -> dict[str, Any]:
    """File name -> content of a step folder, without its manifest (which has the hashes of the others)."""
    folder, content = run / "checkpoints" / f"step-{step:08d}", {}
    for file in folder.iterdir():
        if file.name != "manifest.json":
            content[file.name] = json.loads(file.read_bytes()) if file.suffix == ".json" else file.read_bytes()
    return content


def metrics_of(run: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, without what depends on the clock or the machine."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not depends_on_the_clock(name)} for line in lines]


def longest_pause(run: Path) -> float:
    """Seconds that a save kept the training waiting, the longest of all that metrics.jsonl has."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return max(line[names.PERF_SAVE_PAUSE_SECONDS] for line in lines if names.PERF_SAVE_PAUSE_SECONDS in line)


def depends_on_the_clock(name: str) -> bool:
    return name == "time" or name.startswith(("perf/", "checkpoint/")) or "seconds" in name


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Names whose contents differ."""
    return sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
