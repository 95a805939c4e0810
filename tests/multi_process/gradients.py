"""Rank program: the trainer on ZeRO-2 and ZeRO-3 against plain torch, step by step, in several settings.

python -m tests.multi_process.gradients HOME     (started once per rank by tests/multi_process/launcher.py)
"""

from __future__ import annotations

import sys
from pathlib import Path

import deepspeed
import torch

from megaunigame.config import load_recipe
from megaunigame.data.stream import micro_batch_loader
from megaunigame.distributed import World, start_world
from megaunigame.engine.parameters import element_count, rank_count
from megaunigame.monitoring import names
from megaunigame.trainer import Trainer
from tests.multi_process.plain_reference import PlainReference
from tests.multi_process.tiny_run import write_recipe

STEPS = 4
TOLERANCE = 1e-5
CASES = {
    "full": {},
    "accumulation": {"batch": {"accumulation": 3}},
    "checkpointing": {"model": {"gradient_checkpointing": True}, "batch": {"accumulation": 2}},
    "lora": {"model": {"train": "lora", "lora": {"rank": 4, "alpha": 8, "dropout": 0.0}}},
    "lora_checkpointing": {
        "model": {"train": "lora", "lora": {"rank": 4, "alpha": 8, "dropout": 0.0}, "gradient_checkpointing": True}
    },
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
    "zero2_lora": {
        "engine": {"ds_config": "ds_configs/zero2.json"},
        "model": {"train": "lora", "lora": {"rank": 4, "alpha": 8, "dropout": 0.0}},
    },
}


def gathered(parameter: torch.nn.Parameter) -> torch.Tensor:
    """The whole parameter on every rank."""
    if not hasattr(parameter, "ds_id"):
        return parameter.detach().clone()
    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


def check_partitioned(trainer: Trainer, world: World) -> None:
    """No rank holds more than its share of any parameter (one element of padding at most per parameter and rank)."""
    parameters = list(trainer.learner.module.parameters())
    whole, local = sum(map(element_count, parameters)), sum(map(rank_count, parameters))
    assert local <= whole / world.size + len(parameters), (local, whole)
    assert sum(p.data.numel() for p in parameters) == 0, "weights are whole between the passes"


def run(case: str, settings: dict, home: Path, world: World) -> None:
    recipe_file = write_recipe(home / f"{case}-{world.rank}.yaml", home, **settings)
    recipe = load_recipe(str(recipe_file), [f"output={home / 'runs' / case}"])
    trainer = Trainer(recipe, world)
    plain = PlainReference(recipe, trainer.plan, trainer.objective_of, trainer.accumulation, world.size)
    stage3 = "zero2" not in case
    if stage3:
        check_partitioned(trainer, world)
    trainer.dry_run()
    batches = iter(micro_batch_loader(trainer.micro_batches, 0, STEPS * trainer.accumulation, 0, 2))
    worst = 0.0
    for step in range(STEPS):
        metrics = trainer.train_step(batches)
        losses, norm = plain.step()
        for term, mean in losses.items():
            assert abs(metrics[names.loss(term)] - mean) < TOLERANCE * 10, (case, step, term, metrics, mean)
        assert abs(metrics[names.OPTIM_GRAD_NORM] - norm) < TOLERANCE * max(1.0, norm) * 10, (case, step, metrics, norm)
        ours = {n: p for n, p in trainer.learner.module.named_parameters() if p.requires_grad}
        assert set(ours) == set(plain.trained)
        for name, parameter in ours.items():
            error = (gathered(parameter) - plain.trained[name].detach()).abs().max().item()
            worst = max(worst, error)
            assert error < TOLERANCE, (case, step, name, error)
    if stage3:
        check_partitioned(trainer, world)
    moved = max(
        (plain.trained[n].detach() - p).abs().max().item() for n, p in trainer_start(recipe).items() if n in plain.trained
    )
    if world.is_main:
        print(f"{case}: largest error {worst:.1e} after {STEPS} steps, largest move {moved:.1e}", flush=True)
    assert moved > 100 * TOLERANCE, "nothing was trained, so nothing was compared"


def trainer_start(recipe) -> dict[str, torch.Tensor]:
    """The weights before training, as a plain model has them."""
    from megaunigame.models.janus import Janus

    model = Janus.load(recipe.model.path)
    if recipe.model.train == "lora":
        lora = recipe.model.lora
        model.add_lora(rank=lora.rank, alpha=lora.alpha, dropout=0.0, targets=lora.targets)
    return {n: p.detach() for n, p in model.named_parameters()}


if __name__ == "__main__":
    this_world = start_world(1)
    chosen = sys.argv[2:] or list(CASES)
    for label in chosen:
        run(label, CASES[label], Path(sys.argv[1]), this_world)
    this_world.close()
