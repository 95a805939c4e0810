"""Checks of `model.max_length` before weights are read: pictures that do not fit, rows longer than the model was trained on."""

from __future__ import annotations

import logging

from megaunigame.config import RANDOM, ModelConfig
from megaunigame.models.base import Processor, UnifiedModel
from megaunigame.parallel.ranks import Ranks
from megaunigame.step.requests import StepPlan

log = logging.getLogger(__name__)


def check_row_lengths(
    family: type[UnifiedModel], config: ModelConfig, processor: Processor, plan: StepPlan, world: Ranks
) -> None:
    """Raises ConfigError or DataError when `model.max_length` cannot hold the pictures of the plan's rows.

    Rank 0 warns where they may be longer than what a pretrained model was trained on: rotary positions go on, and the rows run.
    """
    for name in plan.passes:
        processor.largest(plan.widest(name), name)
    for request in plan.aside:
        processor.largest(plan.alone(request), request.pass_name)
    trained = family.trained_positions(config.path)
    if config.weights != RANDOM and world.is_main and 0 < trained < config.max_length:
        log.warning(
            "model.max_length=%d, but max_position_embeddings=%d in %s: the language model was not trained on longer rows, and "
            "may read and draw badly in them. Type model.max_length=%d; rows with smaller pictures are shorter.",
            *(config.max_length, trained, config.path, trained),
        )
