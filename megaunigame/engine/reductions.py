"""Times the gradient reductions of the engine, inside the backward and at its end."""

from __future__ import annotations

from typing import Any

from megaunigame.step.phases import REDUCE, PhaseTimer

REDUCING = ("reduce_independent_p_g_buckets_and_remove_grads", "overlapping_partition_gradients_reduce_epilogue")
"""Methods of DeepSpeed's optimizers of stages 2 and 3: add a gradient to the bucket, which is sent when full; send the last
bucket."""


def time_reductions(optimizer: Any, phases: PhaseTimer) -> None:
    """Make the reductions of `optimizer` a phase. If they run on a separate stream of the device, only the part that the
    backward waits for is timed."""
    for name in REDUCING:
        setattr(optimizer, name, phases(REDUCE)(getattr(optimizer, name)))
