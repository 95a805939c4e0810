"""Rank program: random plans on random data, one after another on one engine, against one process of plain torch.

python -m tests.faults.lockstep HOME SEED PLANS [FIRST]     (started once per rank by tests/multi_process/launcher.py)

Building an engine costs seconds, a plan milliseconds. So all plans share one engine, whose learning rate is 0: the weights stay
as they were read, and every plan's gradient must equal that of plain torch on the rows of all ranks. The engine goes
from plan to plan without a pause, as it goes from step to step. Rank i % W keeps the gradients of plan i; when all plans have
been played, each rank compares its own, alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
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
from megaunigame.training.assembly import Assembly
from megaunigame.training.trainer import Trainer
from tests.faults.random_plans import STEPS, Drawn, draw
from tests.multi_process import plain_reference
from tests.multi_process.attention_reference import AttentionReference
from tests.multi_process.plain_reference import PlainReference
from tests.multi_process.programs import batches_of, trainer_of
from tests.multi_process.tiny_run import write_recipe
from tests.multi_process.unigame import hard_rows
from tests.multi_process.unigame_reference import PlainGame

TOLERANCE = 2e-5
"""Relative to the largest element of the whole gradient; and of losses and norms, relative."""
SILENT = "silent"


# Playing them


@dataclass
class Played:
    """What the engine found in one plan, on the rank that compares it."""

    drawn: Drawn
    trainer: Trainer
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)
    hard: list[list[Any]] = field(default_factory=list)


class SilentRank(MicroBatches):
    """Rows of a run in which no sample has anything for rank `silent`."""

    silent: int | None = None

    def _row(self, *given: Any) -> Any:
        row, key = super()._row(*given)
        return (None, key) if self.rank == self.silent else (row, key)


@contextlib.contextmanager
def rows_of(drawn: Drawn) -> Iterator[type[MicroBatches]]:
    """The rows that the trainer and the reference read."""
    kind = type(SILENT, (SilentRank,), {"silent": drawn.silent})
    with mock.patch.object(Trainer, "micro_batches_of", kind), mock.patch.object(plain_reference, "MicroBatches", kind):
        yield kind


def one_engine(home: Path, world: Ranks) -> Learner:
    """With a learning rate of 0, whatever it is told."""
    learner = trainer_of("engine", home, world).learner
    set_lr = learner.set_lr
    learner.set_lr = lambda lr: set_lr(0.0)  # type: ignore[method-assign]
    return learner


def build(drawn: Drawn, learner: Learner, home: Path, world: Ranks) -> Trainer:
    """Collective. Raises UserError, on every rank, for a plan that no recipe can ask for."""
    name = f"plan-{world.rank}"
    file = write_recipe(home / f"{name}.yaml", home, **drawn.settings)
    recipe = load_recipe(str(file), [f"output={home / 'runs' / f'{drawn.number}'}", "checkpoint.resume=never"])
    with rows_of(drawn), mock.patch.object(Assembly, "build_learner", lambda parts: learner):
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


def run(home: Path, seed: int, plans: int, first: int, world: Ranks) -> str:
    learner, playeds, illegal, number = one_engine(home, world), [], 0, first
    seen: Counter[str] = Counter()
    started = time.monotonic()
    while len(playeds) < plans:
        drawn, number = draw(seed, number, home, world.size), number + 1
        try:
            trainer = build(drawn, learner, home, world)
        except UserError as error:
            illegal += 1
            assert illegal < 2 * plans + 20, f"{drawn}: {error}"
            continue
        try:
            playeds.append(played := play(drawn, trainer, world))
        except Exception as error:
            raise AssertionError(str(drawn)) from error
        wanted = [name for name in played.metrics[-1] if name.endswith("/wanted")]
        filled = {name: played.metrics[-1][name.replace("/wanted", "/filled")] for name in wanted}
        seen["rows of a term missing on all ranks"] += any(count == 0 for count in filled.values())
        seen["bad samples replaced"] += played.metrics[-1][names.DATA_BAD_SAMPLES] > 0
        seen["empty buffers"] += any(not len(rows.tokens) or not rows.counts.any() for step in played.hard[1:] for rows in step)
        seen["replayed"] += any(bool(rows.counts.any()) for step in played.hard[1:] for rows in step)
        seen["a rank of dummies"] += drawn.silent is not None
        seen["all rejected"] += drawn.rejects
        seen[f"passes {'+'.join(played.trainer.plan.passes)}"] += 1
        shutil.rmtree(home / "runs" / f"{drawn.number}", ignore_errors=True)
    lasted = time.monotonic() - started
    own = [played for played in playeds if played.gradients]
    worst = max((compare(played, world) for played in own), default=0.0)
    everywhere = world.all_gather_object((len(own), worst))
    assert sum(count for count, _ in everywhere) == plans
    largest = max(difference for _, difference in everywhere)
    met = ", ".join(f"{name} {count}" for name, count in sorted(seen.items()))
    return f"{plans} plans on {world.size} ranks: as one process; {lasted:.0f} s; largest difference {largest:.1e}; {met}"


if __name__ == "__main__":
    ranks, folder = start_world(2.0), Path(sys.argv[1])
    said = run(folder, *map(int, (sys.argv[2], sys.argv[3], (sys.argv[4:] or ["0"])[0])), ranks)
    if ranks.is_main:
        print(said, flush=True)
    ranks.close()
    sys.stdout.flush()
    os._exit(0)
