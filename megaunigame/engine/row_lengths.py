"""Checks of `model.max_length`: pictures that do not fit are refused before weights are read; of rows longer than the model was
trained on, the plan that a run prints warns."""

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
        f"model.max_length={config.max_length}, but the language model in {config.path} was trained on {trained} positions "
        "(max_position_embeddings), and may read and draw badly in longer rows. Where the pictures of a row fit, type "
        f"model.max_length={trained}; smaller pictures make rows shorter (source_size in processor_config.json)."
    )
