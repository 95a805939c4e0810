"""A recipe of 34 billion parameters by number of ranks, from its modules on the meta device: exact arithmetic, no estimate."""

from __future__ import annotations

from typing import Any

import torch

from megaunigame.config import load_recipe
from megaunigame.engine.element_bytes import GRADIENT, OPTIMIZER, WEIGHT
from megaunigame.engine.parameters import choose_trainable
from megaunigame.planning.rehearsal import ATTENTION
from megaunigame.planning.workload import workload

RECIPE = "launch/recipes/emu3_5_34b_unigame.yaml"
TRAINED = {"all weights": ["model.train=full"], "adapters": []}


def large_shape(ranks: list[int], trained: str) -> list[dict[str, Any]]:
    """A row for each number of ranks, of rank 0; `trained`: a key of TRAINED."""
    recipe = load_recipe(RECIPE, ["batch.accumulation=1", "batch.global_rows=null", *TRAINED[trained]])
    with workload(recipe, min(ranks)) as work, torch.device("meta"):
        processor = work.family.open_processor(work.folder, max_length=recipe.model.max_length)
        model = work.family.build(work.folder, processor, attention=ATTENTION, gradient_checkpointing=True)
        choose_trainable(model, recipe.model, work.plan, recipe.seed)
        persistent = work.ds_config["zero_optimization"].get("stage3_param_persistence_threshold", 0)
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    weight, buffer = WEIGHT[recipe.engine.precision], recipe.objectives["unigame"]
    rows = []
    for count in ranks:
        gathered = [-(-numel // count) * count for numel, _ in sizes if numel > persistent]
        slices = sum(-(-numel // count) for numel, is_trained in sizes if is_trained)
        share = -(-buffer["buffer"]["capacity"] // count)
        candidates = buffer["buffer"]["merge_every"] * buffer["attack_rows"]
        rows.append(
            {
                "trained": trained,
                "ranks": count,
                "elements": sum(numel for numel, _ in sizes),
                "gathers": len(gathered),
                "gathered": weight * sum(gathered),
                "padding": weight * sum(whole - numel for whole, (numel, _) in _pairs(gathered, sizes, persistent)),
                "states": weight * sum(-(-numel // count) for numel, _ in sizes) + (GRADIENT + OPTIMIZER) * slices,
                "saved": OPTIMIZER * slices,
                "table": 4 * count * (share + candidates),
            }
        )
    return rows


def _pairs(gathered: list[int], sizes: list[tuple[int, bool]], persistent: int) -> Any:
    return zip(gathered, [size for size in sizes if size[0] > persistent], strict=True)
