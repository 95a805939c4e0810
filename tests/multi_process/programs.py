"""What the rank programs share: settings, trainers, and the order of their cases."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor

from megaunigame.config import load_recipe
from megaunigame.data.loading.loader import MicroBatchLoader
from megaunigame.models.base import UnifiedModel
from megaunigame.parallel.mesh import Mesh
from megaunigame.parallel.ranks import Ranks, start_world
from megaunigame.registry import available
from megaunigame.training.trainer import Trainer
from tests.multi_process.collectives import check_same, noted
from tests.multi_process.plain_reference import PlainReference
from tests.multi_process.tiny_run import write_recipe

LORA = {"train": "lora", "lora": {"rank": 4, "alpha": 8, "dropout": 0.0}}
ZERO2 = {"ds_config": "ds_configs/zero2.json"}
ZERO2_OFFLOADED = {"ds_config": "tests/multi_process/zero2_offload.json"}
"""The optimizer on the host."""
CHECKPOINTING = {"gradient_checkpointing": True}
TWICE = {"accumulation": 2}
PLAYED = {
    **{"clean_rows": 2, "hard_rows": 2, "attack_rows": 3},
    "adversary": {"kind": "perturber", "budget": "relative", "eps_max": 0.5, "hidden": 16},
}
"""Of the game: its rows and its adversary."""


def of_other_families(cases: dict[str, dict], **settings: Any) -> dict[str, dict]:
    """A case with `settings` for every family that `cases` has none of, so that a new family is compared from its first day."""
    tried = {case.get("model", {}).get("family", "janus") for case in cases.values()}
    others = [family for family in available("models", UnifiedModel) if family not in tried]
    return {family: {**settings, "model": {**settings.get("model", {}), "family": family}} for family in others}


def trainer_of(name: str, home: Path, world: Ranks, kind: type[Trainer] = Trainer, **settings: Any) -> Trainer:
    """The trainer of a recipe of these settings; each rank writes its own file. The run goes to `home`/runs/`name`."""
    file = write_recipe(home / f"{name}-{world.rank}.yaml", home, **settings)
    recipe = load_recipe(str(file), [f"output={home / 'runs' / name}"])
    return kind(recipe, Mesh.of(world, recipe.engine.sequence_ranks))


def batches_of(trainer: Trainer, steps: int) -> Iterator[Any]:
    """The micro-batches of the first optimizer steps."""
    return iter(MicroBatchLoader(trainer.micro_batches, 0, steps * trainer.accumulation, 0, 2))


def gathered(parameter: torch.nn.Parameter) -> Tensor:
    """The whole parameter on every rank."""
    with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
        return parameter.detach().clone()


def whole(parameters: Mapping[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    """Name -> the whole parameter, on every rank."""
    sliced = [p for p in parameters.values() if hasattr(p, "ds_id")]
    with deepspeed.zero.GatheredParameters(sliced, enabled=bool(sliced)):
        return {name: p.detach().clone() for name, p in parameters.items()}


def trained_weights(trainer: Trainer) -> dict[str, Tensor]:
    """Name -> the whole weight, on every rank; of all that are trained."""
    return whole({n: p for n, p in trainer.learner.module.named_parameters() if p.requires_grad})


def largest_error(trainer: Trainer, plain: PlainReference, legal: float, *more: tuple[str, Tensor, Tensor]) -> float:
    """Between the trained weights and those of the reference, and between `more` pairs; above `legal` it fails."""
    trained = trained_weights(trainer)
    assert set(trained) == set(plain.trained)
    pairs = [*more, *((name, ours, plain.trained[name]) for name, ours in trained.items())]
    errors = {name: (ours.detach().float() - theirs.detach()).abs().max().item() for name, ours, theirs in pairs}
    wrong = {name: error for name, error in errors.items() if not error < legal}
    assert not wrong, (trainer.recipe.output, plain.step_number, wrong)
    return max(errors.values())


def play(run: Callable[..., str], cases: dict[str, Any], checks: dict[str, Callable[[Path, Ranks], str]]) -> None:
    """`python -m PROGRAM HOME [NAME...]`: these cases and checks, or all. Rank 0 says what each reports.

    Ends as launch scripts end: without the interpreter's own end, which gloo's threads can abort.
    """
    gc.freeze()  # deepspeed collects garbage for every engine: not among the modules that are imported by now
    world, home = start_world(1), Path(sys.argv[1])
    for name in sys.argv[2:] or [*cases, *checks]:
        with noted() as calls:
            report = run(name, cases[name], home, world) if name in cases else checks[name](home, world)
        check_same(name, calls, world)
        if world.is_main:
            print(f"{name}: {report}", flush=True)
    world.close()
    sys.stdout.flush()
    os._exit(0)
