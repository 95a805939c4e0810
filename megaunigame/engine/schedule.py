"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from megaunigame.config import ScheduleConfig


def lr_factor(schedule: ScheduleConfig, step: int) -> float:
    """Factor on the base learning rate in optimizer step `step` (0 is the first), in [min_ratio, 1] after the warm-up."""
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    if schedule.kind == "constant":
        return 1.0
    done = (step - schedule.warmup_steps) / max(1, schedule.steps - schedule.warmup_steps)
    if schedule.kind == "cosine":
        shape = 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    elif schedule.kind == "linear":
        shape = 1.0 - min(1.0, done)
    else:  # flat_linear
        shape = min(1.0, 2.0 * (1.0 - min(1.0, done)))
    return schedule.min_ratio + (1.0 - schedule.min_ratio) * shape
