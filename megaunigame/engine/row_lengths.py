"""Checks of `model.max_length` before weights are read: pictures that do not fit, rows longer than the model was trained on."""

from __future__ import annotations

from megaunigame.config import RANDOM, ModelConfig
from megaunigame.models.base import Processor, UnifiedModel
from megaunigame.step.requests import StepPlan


def check_row_lengths(processor: Processor, plan: StepPlan) -> None:
    """Raises ConfigError or DataError when `model.max_length` cannot hold the pictures of the plan's rows."""
    for name in plan.passes:
        processor.largest(plan.widest(name), name)
    for request in plan.aside:
        processor.largest(plan.alone(request), request.pass_name)


def beyond_training(family: type[UnifiedModel], config: ModelConfig) -> str:
    """What to know of rows longer than a pretrained model was trained on; empty if there are none.

    Rotary positions go on, so such rows run.
    """
    trained = 0 if config.weights == RANDOM else family.trained_positions(config.path)
    if not 0 < trained < config.max_length:
        return ""
    return (
        f"model.max_length={config.max_length}, but max_position_embeddings={trained} in {config.path}: the language model was "
        f"not trained on longer rows, and may read and draw badly in them. Type model.max_length={trained}; rows with smaller "
        "pictures are shorter."
    )
