"""Rank program: random plans on random data, one after another on one engine, against one process of plain torch.

python -m tests.faults.lockstep HOME SEED PLANS [FIRST]     (started once per rank by tests/multi_process/launcher.py)

Building an engine costs seconds, a plan milliseconds. So all plans share one engine, whose learning rate is 0: the weights stay
as they were read, and every plan's gradient must equal that of plain torch on the rows of all ranks. The engine goes
from plan to plan without a pause, as it goes from step to step. Rank i % W keeps the gradients of plan i; when all plans have
been played, each rank compares its own, alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
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
from tests.data.shard_files import encoded, talk, write_shards
from tests.multi_process import plain_reference
from tests.multi_process.attention_reference import AttentionReference
from tests.multi_process.plain_reference import PlainReference
from tests.multi_process.programs import batches_of, trainer_of
from tests.multi_process.tiny_run import ANSWERS, QUESTIONS, sample, write_model, write_recipe
from tests.multi_process.unigame import GAME, hard_rows
from tests.multi_process.unigame_reference import PlainGame

STEPS = 2
"""Of each plan: in the second one, what was mined in the first is replayed."""
TOLERANCE = 2e-5
"""Relative to the largest element of the whole gradient; and of losses and norms, relative."""
SILENT = "silent"
BAD_EVERY = 3


# Data


def odd_sample(number: int) -> dict[str, bytes]:
    """Every third one cannot be used: JSON that ends early, a picture that ends early, a conversation without an answer."""
    fields = sample(5 * number + 1)
    if number % BAD_EVERY:
        return fields
    broken = {
        0: {"json": fields["json"][:-9]},
        1: {"png": fields["png"][: len(fields["png"]) // 2]},
        2: {"json": json.dumps({"conversations": [{"from": "human", "value": "?"}], "caption": "c"}).encode()},
    }
    return {**fields, **broken[number // BAD_EVERY % 3]}


def text_sample(number: int) -> dict[str, bytes]:
    return sample(5 * number)


def uneven_sample(number: int) -> dict[str, bytes]:
    """Answers of one word or of very many; captions that fill the row, or are missing."""
    words = ANSWERS * (30 if number % 2 else 1)
    meta: dict[str, Any] = {"conversations": talk((QUESTIONS[number % 3], " ".join(words[: 1 + number * 7 % len(words)])))}
    if number % 3:
        meta["caption"] = " ".join(["ball"] * (60 if number % 5 == 0 else 1))
    picture = torch.arange(16 * 16 * 3, dtype=torch.uint8).reshape(16, 16, 3).numpy() + number
    return {"json": json.dumps(meta).encode(), "png": encoded(picture)}


SHARDS = {"mixed": sample, "odd": odd_sample, "text only": text_sample, "uneven": uneven_sample}


def write_home(home: Path) -> Path:
    write_model(home / "model")
    for name, fields in SHARDS.items():
        write_shards(home / name, [12, 12], fields=fields)
    shutil.copytree(home / "mixed", home / "shards")
    return home


# Plans


@dataclass
class Drawn:
    """One random plan."""

    number: int
    settings: dict[str, Any]
    game: dict[str, Any] | None
    data: str
    silent: int | None
    """This rank has nothing but dummies."""
    rejects: bool
    """The filter of the game rejects every picture."""

    def __str__(self) -> str:
        return f"plan {self.number}: {self.settings}, data {self.data}, silent rank {self.silent}, rejects {self.rejects}"


def draw(seed: int, number: int, home: Path, world_size: int) -> Drawn:
    """Plan `number` of a seed; the same on every rank."""
    rng = random.Random(f"{seed}/{number}")
    objectives: dict[str, Any] = {
        "understanding": {"rows": rng.choice((0, 1, 2)), "independent": rng.random() < 0.3, "turns": rng.choice((0, 0, 1))},
        "generation": {
            "caption_rows": rng.choice((0, 1, 2)),
            "pixel_rows": rng.choice((0, 0, 1)),
            "drop": rng.choice((0.0, 0.5)),
        },
    }
    game = None
    kind = rng.choice(("plain", "unimrg", "unimrg", "aia", "game", "game"))
    if kind == "unimrg":
        rows = {task: rng.choice((0, 1, 2)) for task in ("understanding", "edges", "pixel")}
        objectives["unimrg"] = {"rows": rows, "schedule": rng.choice(("all", "round_robin", "sampled")), "drop": 0.3}
        if rng.random() < 0.5:
            objectives["understanding"]["rows"] = objectives["generation"]["caption_rows"] = 0
            objectives["generation"]["pixel_rows"] = 0
    elif kind == "aia":
        objectives["aia"] = {"targets": "relative", "weights": {"generate": 5.0, "understand": 10.0}}
        objectives["understanding"]["rows"] = max(1, objectives["understanding"]["rows"])
    elif kind == "game":
        mode = rng.choice(("alternating", "simultaneous"))
        game = {
            **GAME,
            "clean_rows": rng.choice((0, 1, 2)),
            "hard_rows": rng.choice((0, 1, 2)),
            "attack_rows": rng.choice((1, 2)),
        }
        game |= {"mode": mode, "path": rng.choice(("decoder", "embedding")), "pictures_every": rng.choice((0, 1))}
        game |= {"every": rng.choice((1, 1, 2)), "attack_on": "stream", "clip": {"model": "tiny-random", "tau": -1.0}}
        game["buffer"] = {**GAME["buffer"], "merge_every": 1, "capacity": rng.choice((2, 6))}
        objectives["unigame"] = game
    settings = {
        "objectives": objectives,
        "batch": {"accumulation": rng.choice((1, 1, 2, 3))},
        "data": {"train": {"shards": "", "window": 2}},
        "loader": {"workers": 0, "max_bad_fraction": 1.0, "max_dummy_fraction": 1.0},
        "seed": rng.randrange(1000),
        "schedule": {"steps": STEPS},
    }
    data = rng.choice(("mixed", "mixed", "odd", "text only", "uneven"))
    settings["data"]["train"]["shards"] = str(home / data)
    silent = rng.choice((None, None, *range(world_size)))
    return Drawn(number, settings, game, data, silent, game is not None and rng.random() < 0.3)


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
    """A reference whose weights stand still."""

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
