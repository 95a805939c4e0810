"""Rank program: the trainer on ZeRO-2 and ZeRO-3 against plain torch, step by step, in several settings.

python -m tests.multi_process.gradients HOME     (started once per rank by tests/multi_process/launcher.py)
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import deepspeed
import torch

from megaunigame.config import load_recipe
from megaunigame.data.loading.stream import MicroBatchLoader
from megaunigame.engine import zero3
from megaunigame.engine.parameters import element_count, rank_count
from megaunigame.errors import DivergenceError
from megaunigame.models.base import UnifiedModel
from megaunigame.monitoring import names
from megaunigame.parallel.mesh import Mesh
from megaunigame.parallel.ranks import Ranks, start_world
from megaunigame.registry import find
from megaunigame.training.trainer import Trainer
from tests.multi_process.attention_reference import AttentionReference
from tests.multi_process.plain_reference import PlainReference
from tests.multi_process.tiny_run import leave, write_recipe

STEPS = 4
NONE_OF_THESE = {"understanding": {"rows": 0}, "generation": {"caption_rows": 0}}


def unimrg(**settings) -> dict:
    tasks = {"rows": {"understanding": 2, "edges": 1, "pixel": 2}, "drop": 0.3}
    return {**NONE_OF_THESE, "unimrg": {**tasks, **settings}}


def aia(**settings) -> dict:
    return {"aia": settings}


TOLERANCE = 1e-5
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0}
CASES = {
    "full": {},
    "accumulation": {"batch": {"accumulation": 3}},
    "checkpointing": {"model": {"gradient_checkpointing": True}, "batch": {"accumulation": 2}},
    "lora": {"model": {"train": "lora", "lora": LORA}},
    "lora_checkpointing": {"model": {"train": "lora", "lora": LORA, "gradient_checkpointing": True}},
    "all_groups": {
        "model": {"groups": ["vision", "aligner", "lm", "generation_embed", "generation_head"]},
        "optimizer": {"group_lr": {"vision": 0.1}},
    },
    "weights": {
        "objectives": {"understanding": {"rows": 2, "weight": 0.3}, "generation": {"pixel_rows": 1, "pixel_weight": 2.0}}
    },
    "independent_turns": {"objectives": {"understanding": {"rows": 3, "independent": True}}},
    "understanding_only": {"objectives": {"understanding": {"rows": 3}, "generation": {"caption_rows": 0}}},
    "zero2": {"engine": {"ds_config": "ds_configs/zero2.json"}, "batch": {"accumulation": 2}},
    "unimrg_shared_encoder": {
        "objectives": unimrg(source_gradient=0.1, images="paired", rows={"understanding": 2, "pixel": 2}),
        "model": {"groups": ["vision", "aligner", "lm", "generation_embed", "generation_head"]},
    },
    "unimrg_round_robin": {"objectives": unimrg(schedule="round_robin"), "batch": {"accumulation": 3}},
    "unimrg_sampled": {"objectives": unimrg(schedule="sampled"), "batch": {"accumulation": 2}},
    "unimrg_zero2_round_robin": {
        "objectives": unimrg(schedule="round_robin"),
        "engine": {"ds_config": "ds_configs/zero2.json"},
    },
    "openuni": {"model": {"family": "openuni"}, "objectives": unimrg()},
    "openuni_all_groups_checkpointing": {
        "model": {
            "family": "openuni",
            "groups": ["vision", "aligner", "lm", "queries", "connector", "dit"],
            "gradient_checkpointing": True,
        },
        "batch": {"accumulation": 2},
    },
    "openuni_lora_round_robin": {
        "model": {"family": "openuni", "train": "lora", "lora": LORA},
        "objectives": unimrg(schedule="round_robin"),
        "batch": {"accumulation": 3},
    },
    "openuni_zero2": {"model": {"family": "openuni"}, "engine": {"ds_config": "ds_configs/zero2.json"}},
    "emu3": {"model": {"family": "emu3"}, "objectives": unimrg(source_gradient=0.1)},
    "emu3_lora_checkpointing": {
        "model": {"family": "emu3", "train": "lora", "lora": LORA, "gradient_checkpointing": True},
        "objectives": unimrg(schedule="round_robin"),
        "batch": {"accumulation": 3},
    },
    "emu3_zero2": {"model": {"family": "emu3"}, "engine": {"ds_config": "ds_configs/zero2.json"}},
    "aia": {"objectives": aia(weights={"generate": 5.0, "understand": 10.0}), "batch": {"accumulation": 2}},
    "aia_checkpointing_one_layer": {
        "objectives": aia(weights={"generate": 40.0, "understand": 40.0}, layers=[1]),
        "model": {"gradient_checkpointing": True},
    },
    "aia_lora_measured_weights": {
        "objectives": aia(preset="auto", ratio=2.0, calibration_steps=2),
        "model": {"train": "lora", "lora": LORA, "gradient_checkpointing": True},
        "batch": {"accumulation": 2},
    },
    "aia_zero2_independent_turns": {
        "objectives": aia(weights={"generate": 5.0, "understand": 10.0}) | {"understanding": {"rows": 3, "independent": True}},
        "engine": {"ds_config": "ds_configs/zero2.json"},
    },
    "openuni_aia": {"model": {"family": "openuni"}, "objectives": aia(weights={"generate": 40.0, "understand": 40.0})},
    "emu3_aia": {
        "model": {"family": "emu3", "gradient_checkpointing": True},
        "objectives": aia(weights={"generate": 40.0, "understand": 40.0}),
    },
    "zero2_lora": {"engine": {"ds_config": "ds_configs/zero2.json"}, "model": {"train": "lora", "lora": LORA}},
}


def trainer_of(name: str, home: Path, world: Ranks, **settings) -> Trainer:
    """The trainer of a recipe of these settings; each rank writes its own file. The run goes to `home`/runs/`name`."""
    file = write_recipe(home / f"{name}-{world.rank}.yaml", home, **settings)
    return Trainer(load_recipe(str(file), [f"output={home / 'runs' / name}"]), Mesh.of(world))


def gathered(parameter: torch.nn.Parameter) -> torch.Tensor:
    """The whole parameter on every rank."""
    if not hasattr(parameter, "ds_id"):
        return parameter.detach().clone()
    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


def check_partitioned(trainer: Trainer, world: Ranks) -> None:
    """No rank holds more than its share of any parameter (one element of padding at most per parameter and rank)."""
    parameters = list(trainer.learner.module.parameters())
    whole, local = sum(map(element_count, parameters)), sum(map(rank_count, parameters))
    assert local <= whole / world.size + len(parameters), (local, whole)
    assert sum(p.data.numel() for p in parameters) == 0, "weights are whole between the passes"


def run(case: str, settings: dict, home: Path, world: Ranks) -> None:
    with watching_loading() as gathered_at_once:
        trainer = trainer_of(case, home, world, **settings)
    recipe = trainer.recipe
    reference = AttentionReference if "aia" in recipe.objectives else PlainReference
    plain = reference(recipe, trainer.plan, trainer.objective_of, trainer.accumulation, world.size)
    measured = sum(name.startswith("aia_") for name in trainer.stepper.terms.names)
    assert trainer.describe().count("its attention is measured in") == measured
    stage3 = "zero2" not in case
    if stage3:
        check_partitioned(trainer, world)
        whole = sum(map(element_count, trainer.learner.module.parameters()))
        assert 0 < max(gathered_at_once) < whole / 4, "loading held too much of the model at once"
        trained = sum(element_count(p) for p in trainer.learner.module.parameters() if p.requires_grad)
        assert f"model: {whole:,} parameters, {trained:,} trained" in trainer.describe()
    trainer.dry_run()
    batches = iter(MicroBatchLoader(trainer.micro_batches, 0, STEPS * trainer.accumulation, 0, 2))
    worst = 0.0
    for step in range(STEPS):
        metrics = trainer.train_step(batches)
        assert metrics[names.PERF_PASSES] == len(trainer.plan.passes) * trainer.accumulation  # no objective adds a pass
        losses, norm = plain.step()
        for name, mean in [(names.LOSS_TOTAL, plain.total), *((names.loss(t), mean) for t, mean in losses.items())]:
            assert abs(metrics[name] - mean) < 2 * TOLERANCE * mean, (case, step, name, metrics, mean)
        assert abs(metrics[names.OPTIM_GRAD_NORM] - norm) < 10 * TOLERANCE * norm, (case, step, metrics, norm)
        ours = {n: gathered(p).float() for n, p in trainer.learner.module.named_parameters() if p.requires_grad}
        assert set(ours) == set(plain.trained)
        for name, parameter in ours.items():
            error = (parameter - plain.trained[name].detach()).abs().max().item()
            worst = max(worst, error)
            assert error < TOLERANCE, (case, step, name, error)
    if stage3:
        check_partitioned(trainer, world)
    start = trainer_start(recipe)
    our_way = torch.cat([(p - start[n]).flatten() for n, p in ours.items()])
    plain_way = torch.cat([(plain.trained[n].detach() - start[n]).flatten() for n in ours])
    direction = torch.cosine_similarity(our_way, plain_way, dim=0).item()
    if world.is_main:
        print(
            f"{case}: largest error {worst:.1e} after {STEPS} steps, largest move {plain_way.abs().max():.1e}, "
            f"cosine of the two ways {direction:.6f}",
            flush=True,
        )
    assert plain_way.abs().max() > 100 * TOLERANCE, "nothing was trained, so nothing was compared"
    assert direction > 1 - 1e-6, (case, direction)


@contextlib.contextmanager
def watching_loading() -> Iterator[list[int]]:
    """Records how many elements are whole at a time while weights are loaded."""
    counts: list[int] = []
    original = zero3._gathered

    def recorded(parameters):
        counts.append(sum(map(element_count, parameters)))
        return original(parameters)

    zero3._gathered = recorded
    try:
        yield counts
    finally:
        zero3._gathered = original


def check_divergence(home: Path, world: Ranks) -> None:
    """A loss that is not finite on one rank stops all ranks, which name it, and updates nothing."""
    trainer = trainer_of("diverges", home, world)
    before = [gathered(p) for p in trainer.learner.module.parameters() if p.requires_grad]
    forward = trainer.learner.forward

    def broken(inputs):
        output = forward(inputs)
        return output._replace(loss_sum=output.loss_sum * (math.nan if world.rank == 1 else 1.0))

    trainer.learner.forward = broken
    try:
        trainer.train_step(iter(MicroBatchLoader(trainer.micro_batches, 0, 1, 0, 2)))
    except DivergenceError as error:
        assert "rank 1: 00" in str(error) and "rank 0:" not in str(error), error
    else:
        raise AssertionError("a loss of NaN went by")
    after = [gathered(p) for p in trainer.learner.module.parameters() if p.requires_grad]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    if world.is_main:
        print("divergence on rank 1: both ranks stop", flush=True)


def trainer_start(recipe) -> dict[str, torch.Tensor]:
    """The weights before training, as a plain model has them."""
    model = find("models", recipe.model.family, UnifiedModel).load(recipe.model.path)
    if recipe.model.train == "lora":
        lora = recipe.model.lora
        model.add_lora(rank=lora.rank, alpha=lora.alpha, dropout=0.0, targets=lora.targets, seed=recipe.seed)
    return {n: p.detach() for n, p in model.named_parameters()}


if __name__ == "__main__":
    this_world = start_world(1)
    chosen = sys.argv[2:] or list(CASES)
    for label in chosen:
        run(label, CASES[label], Path(sys.argv[1]), this_world)
    if this_world.size > 1:
        check_divergence(Path(sys.argv[1]), this_world)
    leave(this_world)
