"""The average of the weights in plain torch: whole tensors of one process. What a run's average is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from megaunigame.engine.optimizer_slices import averaged
from megaunigame.training.trainer import Trainer


class PlainAverage:
    """average = decay x average + (1 - decay) x weights, as a textbook would."""

    def __init__(self, trainer: Trainer, start: Mapping[str, Tensor]):
        """`start`: the trained weights that the run begins with, in float32."""
        self.trainer, self.config = trainer, trainer.recipe.ema
        self.average = {name: weight.clone() for name, weight in start.items()}

    def step(self, number: int, weights: Mapping[str, Tensor], whole: Callable[[], Mapping[str, Tensor]]) -> float:
        """Step `number` (1 is the first) has made `weights` of the reference; `whole`: those of the run, on every rank.

        Returns the largest error of the run's average, whose weights are put into the model and taken back to the last bit.
        """
        if not self.config.decay:
            return 0.0
        if number % self.config.every == 0:
            for name, weight in weights.items():
                self.average[name] = self.config.decay * self.average[name] + (1 - self.config.decay) * weight.detach()
        before = whole()
        with averaged(self.trainer.learner):
            ours = whole()
        after = whole()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert any(not torch.equal(before[name], ours[name]) for name in before), "the average is the weights"
        return max((ours[name].float() - self.average[name]).abs().max().item() for name in ours)
