"""The game on one process without an engine: a tiny random Janus, and the calls that the trainer makes around its passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from megaunigame.config import StreamConfig
from megaunigame.data.loading.stream import MicroBatches
from megaunigame.data.sources.opening import open_stream
from megaunigame.models.janus import Janus
from megaunigame.objectives.base import Objective
from megaunigame.objectives.player import Context
from megaunigame.objectives.unigame import UniGame
from megaunigame.objectives.unigame.attack import Attack
from megaunigame.objectives.unigame.settings import Settings
from megaunigame.settings import fill
from megaunigame.step.inputs import PassInputs, PassOutput
from megaunigame.step.micro import MicroStep, Step
from megaunigame.step.requests import plan_from
from tests.data.shard_files import write_shards
from tests.multi_process.tiny_run import merged, sample
from tests.worlds import OneRank

SEED, LR = 5, 1e-3
DATA = {
    "pictures": [n for n in range(1, 60) if n % 5 and n % 7],
    "texts": [n for n in range(5, 200, 5) if n % 7],
    "untold": [n for n in range(7, 200, 7) if n % 5],
}
"""Numbers of samples with a picture and a caption, without a picture, and without a caption."""
LM = "model.language_model"
CLIP = {"clip": {"model": "tiny-random", "tau": -1.0}}
ADVERSARIES: dict[str, dict[str, Any]] = {
    "perturber": {"kind": "perturber", "hidden": 8},
    "noise": {"kind": "noise"},
    "pgd": {"kind": "pgd", "steps": 2},
}
SETTINGS: dict[str, Any] = {
    "clean_rows": 2,
    "hard_rows": 2,
    "attack_rows": 3,
    "turns": 1,
    "ratio": 1.0,
    "adversary": {"budget": "relative", "eps_max": 0.5},
    "buffer": {"merge_every": 1, "capacity": 16, "percentile": 0.0},
    "pictures_every": 0,
}


def shards(folder: Path, numbers: Sequence[int]) -> Path:
    """Samples of the tiny run: every fifth number has no picture, every seventh no caption."""
    return write_shards(folder, [len(numbers)], fields=lambda i: sample(numbers[i]))


class Played:
    """One game. `step()` is one optimizer step of the trainer, without an update of the learner.

    `others`: objectives that have rows, and no other part in the step.
    """

    def __init__(self, model: Janus, data: Path, *, accumulation: int = 1, others: Sequence[Objective] = (), **settings: Any):
        self.objective = UniGame(fill(Settings, merged(SETTINGS, settings), "objectives.unigame"))
        self.model, self.accumulation = model, accumulation
        self.plan = plan_from(r for objective in (self.objective, *others) for r in objective.rows())
        self.objective.check_plan(self.plan)
        stream = {"train": open_stream("train", StreamConfig(str(data), window=2), SEED)}
        objective_of = {r.term: objective for objective in (self.objective, *others) for r in objective.rows()}
        self.micro_batches = MicroBatches(self.plan, objective_of, stream, model.processor, accumulation, 0, 1, SEED, 0)
        context = Context(model, aside(model), self.plan, OneRank(), SEED)
        game = self.objective.player(context)
        assert game is not None
        self.unigame = game
        self.offered: list[tuple] = []
        """What the pool was given to mine in the last step."""
        mine = self.pool.mine
        self.pool.mine = lambda *given: (self.offered.append(given), mine(*given))
        self.number = 0

    @property
    def pool(self) -> Any:
        return self.unigame.pool

    def attack(self, micro_step: int = 0) -> Attack:
        batch = self.micro_batches[micro_step]
        return self.unigame.attack_of(MicroStep(0, batch.plan, batch.inputs, batch.aside))

    def step(self, watch: Callable[[PassInputs, PassOutput], None] = lambda inputs, output: None) -> dict[str, float]:
        """Metrics of one step; `watch` sees each pass when the objective has."""
        batches = [self.micro_batches[self.number * self.accumulation + m] for m in range(self.accumulation)]
        micro_steps = [MicroStep(n, b.plan, b.inputs, b.aside) for n, b in enumerate(batches)]
        step = Step(self.number, LR, micro_steps, LR)
        self.offered.clear()
        self.unigame.before_learner(step)
        for micro in micro_steps:
            self.unigame.before_micro_step(step, micro)
            losses: list[Tensor] = []
            for name in self.plan.passes:
                inputs = micro.inputs[name]
                output = self.model(inputs)
                losses += [output.loss_sum.sum() / inputs.counts.sum().clamp(min=1)]
                self.unigame.after_pass(step, micro, output)
                watch(inputs, output)
            torch.stack([*losses, *micro.losses.values()]).sum().backward()
        self.model.zero_grad()
        metrics = self.unigame.after_learner(step)
        self.number += 1
        self.passes, self.factors = step.passes, step.factors
        return metrics


def aside(model: nn.Module) -> Callable[[], AbstractContextManager[None]]:
    """What an engine has as `aside`: within, no weight of the learner gets a gradient."""
    learner = [p for p in model.parameters() if p.requires_grad]

    @contextmanager
    def aside() -> Iterator[None]:
        for parameter in learner:
            parameter.requires_grad_(False)
        yield
        for parameter in learner:
            parameter.requires_grad_(True)

    return aside


@contextmanager
def calls_of(model: nn.Module) -> Iterator[list[str]]:
    """Names of the modules in the order in which they were called."""
    called: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: called.append(name)

    handles = [module.register_forward_pre_hook(note(name)) for name, module in model.named_modules()]
    yield called
    for handle in handles:
        handle.remove()
