"""Rank program: one rank gets a signal in each phase of a run; both stop, it is saved, and the same command goes on.

Each round ends in a checkpoint that equals that of a run which was never stopped, to the last bit.

python -m tests.multi_process.stopping HOME [CASE...]
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaunigame.config import load_recipe
from megaunigame.models.base import UnifiedModel
from megaunigame.models.causal import decoding
from megaunigame.monitoring.history import METRICS_FILE
from megaunigame.parallel.interruption import Interruption
from megaunigame.parallel.mesh import Mesh
from megaunigame.parallel.ranks import Ranks
from megaunigame.training.trainer import Trainer
from tests.multi_process import resume
from tests.multi_process.programs import play
from tests.multi_process.resume import checkpoint_differences, losses
from tests.multi_process.tiny_run import write_recipe

STEPS, EVERY, EVALUATE = 4, 3, 2
DRY_RUN, STEP, SAVE, EVALUATION, SAMPLING = "dry_run", "step", "save", "evaluation", "sampling"
resume.LAST = f"checkpoints/step-{STEPS:08d}"


@dataclass(frozen=True)
class Round:
    """A signal to one rank, and what the run leaves."""

    phase: str
    at: int
    """Steps done before it."""
    ends: int
    """Step after which the run ends."""
    signals: tuple[signal.Signals, ...] = (signal.SIGTERM,)
    rank: int = 1
    evaluated: tuple[int, ...] = ()
    """Steps whose evaluation is recorded by then."""


CASES = {
    "dry run": Round(DRY_RUN, at=0, ends=0),
    "evaluation before": Round(EVALUATION, at=0, ends=0, signals=(signal.SIGUSR1,)),
    "step": Round(STEP, at=0, ends=1, evaluated=(0,)),
    "step, twice": Round(STEP, at=0, ends=1, evaluated=(0,), signals=(signal.SIGINT, signal.SIGTERM), rank=0),
    "step before an evaluation": Round(STEP, at=1, ends=2, evaluated=(0,)),
    "evaluation between": Round(EVALUATION, at=2, ends=2, evaluated=(0,)),
    "sampling between": Round(SAMPLING, at=2, ends=2, evaluated=(0,), rank=0),
    "save": Round(SAVE, at=3, ends=3, evaluated=(0, 2), signals=(signal.SIGTERM, signal.SIGTERM)),
    "last step": Round(STEP, at=3, ends=4, evaluated=(0, 2)),
    "last save": Round(SAVE, at=4, ends=4, evaluated=(0, 2), signals=(signal.SIGUSR1,)),
    "evaluation after": Round(EVALUATION, at=4, ends=4, evaluated=(0, 2)),
    "sampling after": Round(SAMPLING, at=4, ends=4, evaluated=(0, 2)),
}


class Signaled(Trainer):
    """One rank of it signals itself in a phase."""

    round: Round

    def dry_run(self) -> None:
        self.signal_in(DRY_RUN)
        super().dry_run()

    def fit(self) -> None:
        self.evaluations.run = functools.partial(self.evaluate, self.evaluations.run)
        begin = self.saves.begin
        self.saves.begin = lambda: (begin(), self.signal_in(SAVE))
        super().fit()

    def train_step(self, micro_batches: Any) -> dict[str, float]:
        fetch = self.stepper._fetch
        with replaced(self.stepper, "_fetch", lambda *args: (self.signal_in(STEP), fetch(*args))[1]):
            return super().train_step(micro_batches)

    def evaluate(self, run: Callable[[Any, Any], bool], learner: Any, monitor: Any) -> bool:
        model: UnifiedModel = self.learner.module
        predict, sample = model.predict, model.sample
        with (
            replaced(model, "predict", lambda *args: (self.signal_in(EVALUATION), predict(*args))[1]),
            replaced(model, "sample", lambda *args, **kwargs: (self.signal_in(SAMPLING), sample(*args, **kwargs))[1]),
        ):
            return run(learner, monitor)

    def signal_in(self, phase: str) -> None:
        """To this process, and wait until it has been heard: the test is about what follows."""
        if (phase, self.state.step, self.world.rank) == (self.round.phase, self.round.at, self.round.rank):
            for number in self.round.signals:
                os.kill(os.getpid(), number)
            until = time.monotonic() + 10
            while self.stop.received is None:
                assert time.monotonic() < until, "the signal was not heard"
                time.sleep(0.01)


@contextlib.contextmanager
def replaced(owner: Any, name: str, other: Any) -> Iterator[None]:
    setattr(owner, name, other)
    try:
        yield
    finally:
        delattr(owner, name)


def launched(kind: type[Trainer], name: str, home: Path, world: Ranks) -> Trainer:
    """A launch of the run `name`, to its end."""
    shards = {"shards": str(home / "pictures"), "limit": 4, "batch": 1}
    suites = {"questions": {**shards, "questions_per_row": 1}, "generation": {**shards, "guidance": 1.0}}
    file = write_recipe(
        home / f"{name}-{world.rank}.yaml".replace(" ", "-"),
        home,
        schedule={"steps": STEPS},
        checkpoint={"every": EVERY, "keep": 9},
        evaluation={"suites": suites, "every": EVALUATE},
        loader={"workers": 1},
    )
    recipe = load_recipe(str(file), [f"output={home / 'runs' / name.replace(' ', '-')}"])
    trainer = kind(recipe, Mesh.of(world), stop=Interruption().listen())
    trainer.fit()
    world.barrier()
    return trainer


WHOLE: list[Trainer] = []
"""The run that was never stopped."""


def evaluated(folder: Path) -> list[int]:
    return sorted(int(file.stem.removeprefix("step-")) for file in (folder / "evaluation").glob("step-*.json"))


def run(case: str, expected: Round, home: Path, world: Ranks) -> str:
    if not WHOLE:
        WHOLE.append(launched(Trainer, "whole", home, world))
        assert not WHOLE[0].interrupted
    (whole,) = WHOLE
    kind = type("Case", (Signaled,), {"round": expected})
    stopped = launched(kind, case, home, world)
    name = expected.signals[0].name
    assert stopped.interrupted.startswith(f"interrupted by {name} on rank {expected.rank} "), stopped.interrupted
    assert stopped.state.step == expected.ends, (case, stopped.state.step)
    latest = stopped.folder / "checkpoints" / "latest"
    if expected.ends:
        assert latest.read_text().strip() == f"step-{expected.ends:08d}"
        assert f"after step {expected.ends}; saved step-{expected.ends:08d} in " in stopped.interrupted, stopped.interrupted
    else:
        assert not latest.exists() and "nothing to save" in stopped.interrupted
    assert evaluated(stopped.folder) == list(expected.evaluated)
    owed = expected.ends in (0, 2, 4) and expected.ends not in expected.evaluated
    assert ("with the evaluation of that step" in stopped.interrupted) == (owed and expected.ends > 0)
    world.barrier()

    resumed = launched(Trainer, case, home, world)
    assert resumed.first_step == expected.ends and resumed.state.step == STEPS and not resumed.interrupted
    assert evaluated(resumed.folder) == [0, 2, 4], "what was left is done by the next launch"
    assert not checkpoint_differences(whole, resumed), case
    if world.is_main:
        assert losses(resumed.folder) == losses(whole.folder)
        lines = [(t.folder / METRICS_FILE).read_text().count('"step"') for t in (whole, resumed)]
        assert lines[0] == lines[1], "an evaluation left has no line"
    return f"{stopped.interrupted}"


if __name__ == "__main__":
    decoding.READS_TO_LEAVE_POINT = 2  # its pictures have four tokens
    play(run, CASES, {})
