"""Rank program: random plans on random data, one after another on one engine, against one process of plain torch.

python -m tests.faults.lockstep HOME SEED PLANS     (started once per rank by tests/multi_process/launcher.py)

Building an engine costs seconds, a plan milliseconds. So all plans share one engine, whose learning rate is 0: the weights stay
as they were read, and every plan's gradient must equal that of plain torch on the rows of all ranks. The engine goes
from plan to plan without a pause, as it goes from step to step. Rank i % W keeps the gradients of plan i; after some plans
each rank compares its own, alone, and rank 0 writes a line of each to HOME/plans-SEED-W.jsonl. The same command, given
again, goes on after the last line.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from deepspeed.utils import safe_get_full_grad
from torch import Tensor, nn

from megaunigame.config import load_recipe
from megaunigame.data.loading.stream import MicroBatches
from megaunigame.engine.zero3 import Learner
from megaunigame.errors import UserError
from megaunigame.monitoring import names
from megaunigame.objectives.unigame.game import Game
from megaunigame.parallel.mesh import Mesh
from megaunigame.parallel.ranks import Ranks, start_world
from megaunigame.step.requests import RowRequest
from megaunigame.training.assembly import Assembly
from megaunigame.training.trainer import Trainer
from tests.faults.random_plans import NOTHING, STEPS, Drawn, draw, family_of, keeps
from tests.multi_process import plain_reference
from tests.multi_process.attention_reference import AttentionReference
from tests.multi_process.plain_reference import PlainReference
from tests.multi_process.programs import batches_of, trainer_of
from tests.multi_process.tiny_run import write_recipe
from tests.multi_process.unigame import hard_rows
from tests.multi_process.unigame_reference import PlainGame

TOLERANCE = 2e-5
"""Relative to the largest element of the whole gradient; and of losses and norms, relative."""
TOGETHER = 12
"""Plans that are played before they are compared: no rank waits long for another one's comparisons."""
KIND = "SomeRows"


# Playing them


@dataclass
class Played:
    """What the engine found in one plan, on the rank that compares it."""

    drawn: Drawn
    trainer: Trainer
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)
    hard: list[list[Any]] = field(default_factory=list)


class SomeRows(MicroBatches):
    """Rows of a run in which each rank has rows of some kinds only."""

    has: tuple[str, ...]

    def _row(self, request: RowRequest, *given: Any) -> Any:
        row, key = super()._row(request, *given)
        return (row if row is not None and keeps(self.has[self.rank], request, row) else None), key


@contextlib.contextmanager
def rows_of(drawn: Drawn) -> Iterator[type[MicroBatches]]:
    """The rows that the trainer and the reference read."""
    kind = type(KIND, (SomeRows,), {"has": drawn.has})
    with mock.patch.object(Trainer, "micro_batches_of", kind), mock.patch.object(plain_reference, "MicroBatches", kind):
        yield kind


def one_engine(home: Path, world: Ranks) -> Learner:
    """With a learning rate of 0, whatever it is told."""
    learner = trainer_of("engine", home, world, model=family_of(home)).learner
    set_lr = learner.set_lr
    learner.set_lr = lambda lr: set_lr(0.0)  # type: ignore[method-assign]
    return learner


def build(drawn: Drawn, learner: Learner, home: Path, world: Ranks) -> Trainer:
    """Collective. Raises UserError, on every rank, for a plan that no recipe can ask for."""
    name = f"plan-{world.rank}"
    file = write_recipe(home / f"{name}.yaml", home, **drawn.settings)
    recipe = load_recipe(str(file), [f"output={home / 'runs' / f'{drawn.number}'}", "checkpoint.resume=never"])
    with rows_of(drawn), mock.patch.object(Assembly, "build_learner", lambda parts, say: learner):
        return Trainer(recipe, Mesh.of(world))


def play(drawn: Drawn, trainer: Trainer, world: Ranks) -> Played:
    """Collective: all steps of a plan. An error in one of them is a failure: nothing that was drawn is wrong."""
    played, learner = Played(drawn, trainer), trainer.learner
    keeps = drawn.number % world.size == world.rank
    trained = {n: p for n, p in learner.module.named_parameters() if p.requires_grad}
    step = learner.engine.step

    def noted_step() -> None:
        gradients = {name: safe_get_full_grad(parameter) for name, parameter in trained.items()}
        if keeps:
            played.gradients.append({name: gradient.clone() for name, gradient in gradients.items()})
        step()

    games = [player for player in trainer.players if isinstance(player, Game)]
    for game in games:
        watch(game, played, world)
    batches = batches_of(trainer, STEPS)
    with mock.patch.object(learner.engine, "step", noted_step):
        for _ in range(STEPS):
            played.metrics.append(trainer.train_step(batches))
    return played


def watch(game: Game, played: Played, world: Ranks) -> None:
    """Note the hard rows of every step; set what the plain game cannot be told by its recipe."""
    game.optimizer.optimizer.param_groups[0]["eps"] = 1e-2  # keeps AdamW's update a smooth function of the gradient
    if played.drawn.rejects and game.clip is not None:
        game.clip.tau = 2.0
    put = game._put_hard_rows

    def put_and_note(step: Any) -> Any:
        drawn = put(step)
        played.hard.append(hard_rows(played.trainer, step, world) if game.config.hard_rows else [])
        return drawn

    game._put_hard_rows = put_and_note  # type: ignore[method-assign]


# Comparing them


class GradientsOnly(PlainReference):
    """A reference whose weights are not updated."""

    gradients: dict[str, Tensor]

    def update(self, parameters: dict[str, nn.Parameter]) -> float:
        self.gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in parameters.items()}
        self.step_number += 1
        return float(torch.cat([g.flatten() for g in self.gradients.values()]).norm())


class PlainOnly(GradientsOnly, PlainReference):
    pass


class AttentionOnly(GradientsOnly, AttentionReference):
    pass


class GameOnly(GradientsOnly, PlainGame):
    def hard_loss(self, hard: list[Any]) -> Tensor:
        return super().hard_loss(hard) if hard else torch.zeros(())


def compare(played: Played, world: Ranks) -> float:
    """Of this rank alone; returns the largest difference found, as TOLERANCE counts."""
    drawn, trainer = played.drawn, played.trainer
    with rows_of(drawn):
        if drawn.game is not None:
            plain: GradientsOnly = GameOnly(trainer, drawn.game, world)
            plain.adversary_optimizer.param_groups[0]["eps"] = 1e-2
        else:
            kind = AttentionOnly if "aia" in trainer.recipe.objectives else PlainOnly
            plain = kind(trainer.recipe, trainer.plan, trainer.objective_of, trainer.accumulation, world.size)
    worst = 0.0
    for number, (gradients, metrics) in enumerate(zip(played.gradients, played.metrics, strict=True)):
        if isinstance(plain, GameOnly):
            _, _, losses = plain.play(played.hard[number])
            norm = plain.norm
        else:
            losses, norm = plain.step()
        largest = max(float(g.abs().max()) for g in plain.gradients.values())
        errors = {
            name: float((gradient - plain.gradients.get(name, torch.zeros(()))).abs().max()) / max(largest, 1e-6)
            for name, gradient in gradients.items()
        }
        errors |= {f"loss {t}": abs(metrics[names.loss(t)] - mean) / max(mean, 1e-6) for t, mean in losses.items()}
        errors["norm"] = abs(metrics[names.OPTIM_GRAD_NORM] - norm) / max(norm, 1e-6)
        wrong = {name: error for name, error in errors.items() if not error < TOLERANCE}
        assert not wrong, f"{drawn}, step {number}: {wrong}, norm {norm}, metrics {metrics}"
        worst = max(worst, *errors.values())
    return worst


def met(played: Played) -> list[str]:
    """What happened in a plan, equal on all ranks."""
    drawn, last = played.drawn, played.metrics[-1]
    filled = [last[name.replace("/wanted", "/filled")] for name in last if name.endswith("/wanted")]
    replays = [rows for step in played.hard[1:] for rows in step]
    seen = {
        "rows of a term missing on all ranks": 0 in filled,
        "bad samples replaced": last[names.DATA_BAD_SAMPLES] > 0,
        "empty buffers": any(not len(rows.tokens) or not rows.counts.any() for rows in replays),
        "replayed": any(bool(rows.counts.any()) for rows in replays),
        "a rank of dummies": NOTHING in drawn.has,
        "ranks with different rows": len(set(drawn.has)) > 1,
        "all rejected": drawn.rejects,
        f"passes {'+'.join(played.trainer.plan.passes)}": True,
    }
    return [what for what, happened in seen.items() if happened]


def play_some(seed: int, first: int, plans: int, learner: Learner, home: Path, world: Ranks) -> list[dict[str, Any]]:
    """Play `plans` legal plans from number `first` on, then compare them: one entry of the log for each plan, in order."""
    entries: list[dict[str, Any]] = []
    playeds: list[Played] = []
    while len(playeds) < plans:
        drawn, began = draw(seed, first + len(entries), home, world.size), time.monotonic()
        entries.append({"plan": drawn.number, "has": drawn.has, "data": drawn.data})
        try:
            trainer = build(drawn, learner, home, world)
        except UserError as error:
            entries[-1] |= {"illegal": str(error)}
            assert sum("illegal" in entry for entry in entries) < 2 * plans + 20, f"{drawn}: {error}"
            continue
        try:
            playeds.append(played := play(drawn, trainer, world))
        except Exception as error:
            raise AssertionError(str(drawn)) from error
        entries[-1] |= {"met": met(played), "seconds": round(time.monotonic() - began, 2)}
        shutil.rmtree(home / "runs" / f"{drawn.number}", ignore_errors=True)
    own = {played.drawn.number: compare(played, world) for played in playeds if played.gradients}
    worst = {number: found for of_rank in world.all_gather_object(own) for number, found in of_rank.items()}
    assert set(worst) == {played.drawn.number for played in playeds}
    return [entry | ({"worst": worst[entry["plan"]]} if entry["plan"] in worst else {}) for entry in entries]


def run(home: Path, seed: int, plans: int, world: Ranks) -> str:
    log = home / f"plans-{seed}-{world.size}.jsonl"
    lines = world.broadcast_object(log.read_text().splitlines() if log.exists() else [])
    entries = [json.loads(line) for line in lines]
    learner = one_engine(home, world)
    while (missing := plans - sum("worst" in entry for entry in entries)) > 0:
        fresh = play_some(seed, len(entries), min(missing, TOGETHER), learner, home, world)
        entries += fresh
        if world.is_main:
            with log.open("a") as file:
                file.writelines(json.dumps(entry) + "\n" for entry in fresh)
    return summary([entry for entry in entries if "worst" in entry], world.size)


def summary(played: Sequence[dict[str, Any]], ranks: int) -> str:
    """Of the plans of a log that could be played."""
    seen = Counter(what for entry in played for what in entry["met"])
    largest, lasted = max(entry["worst"] for entry in played), sum(entry["seconds"] for entry in played)
    said = ", ".join(f"{name} {count}" for name, count in sorted(seen.items()))
    return f"{len(played)} plans on {ranks} ranks: as one process; {lasted:.0f} s; largest difference {largest:.1e}; {said}"


if __name__ == "__main__":
    ranks, folder = start_world(1.0), Path(sys.argv[1])
    said = run(folder, int(sys.argv[2]), int(sys.argv[3]), ranks)
    if ranks.is_main:
        print(said, flush=True)
    ranks.close()
    sys.stdout.flush()
    os._exit(0)
