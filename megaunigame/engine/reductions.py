"""Where the engine reduces gradients: inside the backward, and at its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megaunigame.step.phases import REDUCE, Phases

REDUCING = ("reduce_independent_p_g_buckets_and_remove_grads", "overlapping_partition_gradients_reduce_epilogue")
"""Methods of DeepSpeed's optimizers of stages 2 and 3: a gradient goes into the bucket, which is sent when full; the last
bucket is sent."""


def time_reductions(optimizer: Any, phases: Phases) -> None:
    """Make the reductions of `optimizer` a phase. Where they run on a stream of the device next to the backward, what is
    timed is the part that the backward waits for."""
    for name in REDUCING:
        setattr(optimizer, name, _in_phase(getattr(optimizer, name), phases))


def _in_phase(method: Callable[..., Any], phases: Phases) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        with phases(REDUCE):
            return method(*args, **kwargs)

    return timed
