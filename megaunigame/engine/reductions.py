"""Times the gradient reductions of the engine, inside the backward and at its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megaunigame.step.phases import REDUCE, Phases

REDUCING = ("reduce_independent_p_g_buckets_and_remove_grads", "overlapping_partition_gradients_reduce_epilogue")
"""Methods of DeepSpeed's optimizers of stages 2 and 3: add a gradient to the bucket, which is sent when full; send the last
bucket."""


def time_reductions(optimizer: Any, phases: Phases) -> None:
    """Make the reductions of `optimizer` a phase. If they run on a separate stream of the device, only the part that the
    backward waits for is timed."""
    for name in REDUCING:
        setattr(optimizer, name, _in_phase(getattr(optimizer, name), phases))


def _in_phase(method: Callable[..., Any], phases: Phases) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        with phases(REDUCE):
            return method(*args, **kwargs)

    return timed
