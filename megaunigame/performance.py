"""What a step costs: seconds, tokens, gathered weights, memory, and which share of the devices' peak it reaches."""

from __future__ import annotations

import time

import torch

from megaunigame.distributed import World
from megaunigame.engine.model_flops import ModelFlops
from megaunigame.engine.peak_memory import forget_peak, peak_memory
from megaunigame.engine.peaks import peak_flops
from megaunigame.engine.token_counter import TokenCounter
from megaunigame.engine.zero3 import Learner
from megaunigame.monitoring import names


class Performance:
    """The `perf/` metrics of each step."""

    def __init__(self, learner: Learner, world: World, precision: str, count_flops: bool):
        """`count_flops`: whether to count them also where no peak is known."""
        self.learner, self.world = learner, world
        self.tokens = TokenCounter(learner.module, learner.module.processor.behind_prompt, world.device)
        self.peak = peak_flops(world.device, precision)
        """FLOP/s of one device; None: not known."""
        self.flops = ModelFlops(world, count_flops or self.peak is not None)
        self._started = 0.0

    def begin(self) -> None:
        """A step begins. What an evaluation gathered or read since the last one is not a cost of this one."""
        self._started = time.perf_counter()
        self.learner.gathered.taken()
        self.tokens.taken()
        forget_peak(self.world.device)

    def metrics(self, rows: int, passes: int, tokens: float, useful_tokens: float) -> dict[str, float]:
        """Collective, at the end of a step. `rows` of this rank; `passes` of this rank; tokens of all ranks."""
        seconds = time.perf_counter() - self._started
        memory = torch.tensor([peak_memory(self.world.device)], dtype=torch.float64, device=self.world.device)
        metrics = {
            names.PERF_STEP_SECONDS: seconds,
            names.PERF_ROWS_PER_SECOND: rows * self.world.size / seconds,
            names.PERF_TOKENS_PER_SECOND: tokens / seconds,
            names.PERF_USEFUL_TOKENS_PER_SECOND: useful_tokens / seconds,
            names.PERF_USEFUL_TOKEN_SHARE: useful_tokens / tokens,
            names.PERF_PASSES: passes,
            names.PERF_ALLGATHER_BYTES: self.learner.gathered.taken(),
            names.PERF_PEAK_MEMORY_BYTES: self.world.all_reduce_max(memory).item(),
        }
        flops = self.flops.of(tokens)
        if flops is not None and self.peak is not None:
            metrics[names.PERF_MFU] = flops / seconds / (self.peak * self.world.size)
        return metrics
