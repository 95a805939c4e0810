"""What a step costs: seconds, tokens, gathered weights, memory, and the fraction of the devices' peak it reaches."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from megaunigame.engine.model_flops import ModelFlops
from megaunigame.engine.peak_memory import forget_peak, peak_memory
from megaunigame.engine.token_counter import TokenCounter
from megaunigame.engine.zero3 import Learner
from megaunigame.monitoring import names
from megaunigame.parallel.peaks import peak_flops
from megaunigame.parallel.ranks import Ranks


class Performance:
    """The `perf/` metrics of each step."""

    def __init__(self, learner: Learner, world: Ranks, precision: str):
        self.learner, self.world = learner, world
        self.tokens = TokenCounter(learner.module, learner.module.processor.after_prompt, world.device)
        self.peak = peak_flops(world.device, precision)
        """FLOP/s of one device; None: unknown."""
        self.flops = ModelFlops(world, wanted=self.peak is not None)
        self._started, self._peak = 0.0, 0

    def begin(self) -> None:
        """A step begins: discard what an evaluation gathered or read since the last one."""
        self._started = time.perf_counter()
        self.learner.gathered.pop()
        self.tokens.pop()
        self._peak = peak_memory(self.world.device)
        forget_peak(self.world.device)

    def counts(self, factor: float = 1.0) -> Tensor:
        """(2 + W,) float64 on the device, for `metrics` once summed over the ranks: tokens of this step so far, all and useful
        ones, and per rank the peak bytes since the beginning of the previous step.

        Not the peak of this step: that would need a collective at its end, which waits for the device. `factor`: of the
        tokens.
        """
        peaks = torch.zeros(self.world.size, dtype=torch.float64, device=self.world.device)
        peaks[self.world.rank] = self._peak
        return torch.cat([factor * self.tokens.pop(), peaks])

    def metrics(self, rows: int, passes: int, counts: Sequence[float]) -> dict[str, float]:
        """At the end of a step; collective in the step whose operations are counted.

        `rows` are of all ranks, `passes` of this one.
        """
        seconds = time.perf_counter() - self._started
        tokens, useful_tokens, *peaks = counts
        metrics = {
            names.PERF_STEP_SECONDS: seconds,
            names.PERF_ROWS_PER_SECOND: rows / seconds,
            names.PERF_TOKENS_PER_SECOND: tokens / seconds,
            names.PERF_USEFUL_TOKENS_PER_SECOND: useful_tokens / seconds,
            names.PERF_USEFUL_TOKEN_SHARE: useful_tokens / tokens,
            names.PERF_PASSES: passes,
            names.PERF_ALLGATHER_BYTES: self.learner.gathered.pop(),
            names.PERF_PEAK_MEMORY_BYTES: max(peaks),
        }
        if self.learner.compiled is not None:
            metrics[names.PERF_GRAPHS] = self.learner.compiled.graphs
        flops = self.flops.of(tokens)
        if flops is not None and self.peak is not None:
            metrics[names.PERF_MFU] = flops / seconds / (self.peak * self.world.size)
        return metrics
