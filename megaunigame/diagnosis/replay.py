"""Runs kept rows again: one row at a time, in one process without an engine, with the weights of a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from megaunigame.checkpoint.runs import CHECKPOINTS, open_run
from megaunigame.checkpoint.starting import find_start, start_weights, weights_of_run
from megaunigame.checkpoint.step_folders import complete
from megaunigame.config import OFF, PARTIAL, PRETRAINED, Recipe
from megaunigame.diagnosis.first_not_finite import FirstNotFinite
from megaunigame.errors import ConfigError
from megaunigame.models.base import UnifiedModel, Weights
from megaunigame.models.weights.loading import check_names, check_shapes
from megaunigame.randomness import seed_micro_step
from megaunigame.step.inputs import take_rows
from megaunigame.training.kept_rows import KeptPass, KeptRow, KeptStep

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
ON_CPU = dict.fromkeys(("flash_attention_2", "flash_attention_3", "auto"), "sdpa")
"""Attention that needs a GPU, or is left to the run -> the one in its place."""


@dataclass(frozen=True)
class RowResult:
    """What a row did when it ran alone."""

    rank: int
    micro_step: int
    pass_name: str
    row: KeptRow
    loss: float
    """Sum over its loss positions."""
    grad_norm: float
    """Over all weights of the model, without those of frozen tokenizers."""
    module: str
    """The first module whose output is not finite; "the gradient of" and a module or weight where only that is not; empty: all
    is finite."""
    draws: bool = False
    """Whether its loss depends on a random draw, which was another one in the run."""

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def checkpoint_before(run: Path, step: int) -> Path | None:
    """The complete checkpoint of a run that was saved last, of those before step `step` (1 is the first); None: there is none.

    Not the one of the largest step: a run that went back on purpose has left that one.
    """
    return next((folder for folder, manifest in complete(run / CHECKPOINTS) if manifest.step < step), None)


def open_weights(family: type[UnifiedModel], recipe: Recipe, checkpoint: Path | None, model_path: Path) -> Weights:
    """The weights of a checkpoint, adapters merged; of the beginning of the run without one.

    Raises ConfigError for a run that began with random weights and has no checkpoint.
    """
    if checkpoint is not None:
        return weights_of_run(family, open_run(checkpoint, model_path))
    if recipe.model.weights != PRETRAINED:
        raise ConfigError("The run began with random weights (model.weights=random), to measure a shape: nothing to replay.")
    return start_weights(family, str(model_path), find_start(recipe.model.weights_from))


def load(family: type[UnifiedModel], recipe: Recipe, model_path: Path, weights: Weights) -> UnifiedModel:
    """The whole model on the CPU in the precision of the run, in training mode; one tensor is read at a time."""
    config, path, dtype = recipe.model, str(model_path), DTYPES[recipe.engine.precision]
    processor = family.open_processor(path, max_length=config.max_length)
    attention = ON_CPU.get(config.attention, config.attention)
    model = family.build(path, processor, attention=attention, gradient_checkpointing=False)
    for parameter in model.parameters():  # not model.to(dtype): the rotary frequencies stay float32
        parameter.data = parameter.data.to(dtype)
    tensors = model.state_dict(keep_vars=True)
    check_names(tensors, weights.names(), "The checkpoint")
    check_shapes({n: t.shape for n, t in tensors.items()}, {n: weights.shape(n) for n in tensors}, "The checkpoint")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(weights.read(name))
    model.load_frozen(path, torch.device("cpu"))
    if config.stored_codes != OFF:
        model.use_stored_codes(partial=config.stored_codes == PARTIAL)
    return model.train()


def replay(model: UnifiedModel, kept: KeptStep, *, only_broken: bool = False) -> Iterator[RowResult]:
    """Every row with loss positions, alone; `only_broken`: those whose loss was not finite in the run.

    The seed is that of the micro-step, but a row draws other numbers than the same row among others, on another device.
    """
    for part in kept.passes:
        for index, row in enumerate(part.rows):
            if row.counted and not (only_broken and math.isfinite(float(row.loss))):
                seed_micro_step(kept.seed, kept.step - 1, part.micro_step, kept.rank)
                yield _alone(model, kept.rank, part, index, row)


def _alone(model: UnifiedModel, rank: int, part: KeptPass, index: int, row: KeptRow) -> RowResult:
    model.zero_grad()
    before = torch.get_rng_state()
    with FirstNotFinite(model) as first:
        loss = model(take_rows(part.inputs, slice(index, index + 1))).loss_sum.sum()
        draws = not torch.equal(before, torch.get_rng_state())
        loss.backward()
    value, norm = loss.item(), _norm(model)
    if not math.isfinite(value):
        module = first.forward
    elif not math.isfinite(norm):
        module = f"the gradient of {first.backward or _first_gradient(model)}"
    else:
        module = ""
    return RowResult(rank, part.micro_step, part.inputs.pass_name, row, value, norm, module, draws)


def _norm(model: nn.Module) -> float:
    squares = [p.grad.float().square().sum() for p in model.parameters() if p.grad is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def _first_gradient(model: nn.Module) -> str:
    """The first weight, in the order of the model, whose gradient is not finite."""
    return next(n for n, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all())
