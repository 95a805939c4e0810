"""The engine around a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megaunigame.config import load_recipe
from megaunigame.engine.ds_config import complete_ds_config
from megaunigame.engine.zero3 import Learner, build_learner
from megaunigame.models.base import UnifiedModel
from megaunigame.parallel.ranks import Ranks
from megaunigame.registry import find
from megaunigame.step.requests import StepPlan
from tests.multi_process.tiny_run import write_recipe

DS_CONFIGS = {2: "ds_configs/zero2.json", 3: "ds_configs/zero3_cpu.json"}


def learner_of(
    home: Path,
    world: Ranks,
    plan: StepPlan,
    stage: int,
    precision: str = "bf16",
    engine: dict[str, Any] | None = None,
    **model: Any,
) -> tuple[Learner, dict[str, Any]]:
    """The learner of the model in `home`, and its complete ds_config."""
    engine = {"precision": precision, "ds_config": DS_CONFIGS[stage], **(engine or {})}
    recipe = load_recipe(str(write_recipe(home / "recipe.yaml", home, model=model, engine=engine)), [])
    ds_config = complete_ds_config(recipe, 1, 1)
    return build_learner(find("models", recipe.model.family, UnifiedModel), recipe, plan, ds_config, world), ds_config
