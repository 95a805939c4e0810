"""The ds_config of a run: engine knobs from a JSON file, numbers from the recipe, no overlap."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megaunigame.config import Recipe
from megaunigame.errors import ConfigError
from megaunigame.shipped import located

RECIPE_OWNS = {
    "train_batch_size": "batch.global_rows and the objectives' rows",
    "train_micro_batch_size_per_gpu": "the objectives' rows",
    "gradient_accumulation_steps": "batch.accumulation",
    "gradient_clipping": "optimizer.clip",
    "optimizer": "optimizer.*",
    "scheduler": "schedule.*",
    "bf16": "engine.precision",
    "fp16": "engine.precision",
    "amp": "engine.precision",
    "data_types": "engine.precision",
    "communication_data_type": "engine.reduce_dtype",
    "torch_autocast": "engine.precision",
}


def complete_ds_config(recipe: Recipe, accumulation: int, world_size: int) -> dict[str, Any]:
    """The JSON file of `engine.ds_config`, completed with what the recipe owns.

    The engine does not know rows: to it, a micro-step is a batch of one.

    Raises ConfigError: no file, not JSON, a key the recipe owns, or a ZeRO stage the trainer does not run.
    """
    path = Path(located(recipe.engine.ds_config))
    if not path.is_file():
        raise ConfigError(
            f"engine.ds_config: no file {path} in {Path.cwd()}. Legal: any JSON in ds_configs/, for example "
            "ds_configs/zero3.json."
        )
    try:
        knobs = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ConfigError(f"engine.ds_config: {path} is not JSON: {error}.") from error
    owned = sorted(set(knobs) & set(RECIPE_OWNS))
    if owned:
        raise ConfigError(
            f"{path} sets {owned[0]!r}, which the recipe owns: delete it there and set {RECIPE_OWNS[owned[0]]} in the recipe."
        )
    stage = knobs.get("zero_optimization", {}).get("stage")
    if stage not in (2, 3):
        raise ConfigError(f"{path}: zero_optimization.stage must be 2 or 3; got {stage!r}.")
    _check_saved(path, knobs["zero_optimization"])
    _check_leaves(path, knobs["zero_optimization"])
    return {
        **knobs,
        "train_batch_size": accumulation * world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": recipe.optimizer.clip,
        "bf16": {"enabled": recipe.engine.precision == "bf16"},
        # By default bf16 runs sum micro-steps and ranks in bf16, which loses small contributions.
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": recipe.engine.reduce_dtype,
        # The optimizer is torch's AdamW: nothing is compiled at start-up, and its state is plain tensors.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def _check_saved(path: Path, zero: dict[str, Any]) -> None:
    """Raise ConfigError for knobs that keep weights or optimizer state where checkpoints do not find them."""
    for part in ("offload_optimizer", "offload_param"):
        device = (zero.get(part) or {}).get("device", "none")
        if device not in ("none", "cpu"):
            raise ConfigError(f"{path}: zero_optimization.{part}.device={device} is not supported. Legal: none, cpu.")
    if (zero.get("offload_optimizer") or {}).get("ratio", 1.0) != 1.0:
        raise ConfigError(f"{path}: zero_optimization.offload_optimizer.ratio must be 1: all of the optimizer on the host.")
    if zero.get("mics_shard_size", -1) > 0:
        raise ConfigError(
            f"{path}: zero_optimization.mics_shard_size is not supported. Delete it, or "
            "take ds_configs/zero3_hpz.json, which keeps second copies of the weights inside a node."
        )


def _check_leaves(path: Path, zero: dict[str, Any]) -> None:
    """Raise ConfigError for modules without hooks inside: the engine ends them in a backward, and `torch.autograd.grad`, which
    the dry run and players call, fails there."""
    for knob in ("leaf_module", "stage3_module_granularity_threshold"):
        if zero.get(knob):
            raise ConfigError(
                f"{path}: zero_optimization.{knob} is not supported: DeepSpeed gives no gradient by torch.autograd.grad "
                "through such modules, and the dry run and players need it. Delete it."
            )


def zero_stage(ds_config: dict[str, Any]) -> int:
    return ds_config["zero_optimization"]["stage"]
