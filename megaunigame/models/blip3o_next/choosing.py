"""Drawing a code among the likeliest ones."""

from __future__ import annotations

import torch
from torch import Tensor

from megaunigame.models.base import Generators
from megaunigame.models.blip3o_next.configuration import Choice
from megaunigame.models.causal.decoding import Picker


def likeliest(logits: Tensor, choice: Choice) -> Tensor:
    """(B, V) logits, -inf for all but the `top_k` largest, and of these for all after the first that make up `top_p`."""
    largest, order = logits.topk(min(choice.top_k, logits.shape[-1]))
    shares = largest.softmax(-1)
    before = shares.cumsum(-1) - shares
    kept = largest if choice.top_p == 1 else torch.where(before < choice.top_p, largest, -torch.inf)
    return torch.full_like(logits, -torch.inf).scatter(-1, order, kept)


class LikeliestPicker(Picker):
    """Draws only among the likeliest. At temperature 0 there is nothing to leave out."""

    def __init__(self, temperature: float, generator: Generators, choice: Choice):
        super().__init__(temperature, generator)
        self.choice = choice

    def unsure(self, logits: Tensor, codes: Tensor, error: Tensor) -> Tensor:
        """Also whether a code that could be left out, or not, moves the sums so far that the choice could be another one."""
        if self._numbers is None:
            return super().unsure(logits, codes, error)
        off = (error / self.temperature).unsqueeze(1)
        largest = (logits / self.temperature).topk(min(self.choice.top_k + 1, logits.shape[-1])).values
        kept, following = largest[:, : self.choice.top_k], largest[:, self.choice.top_k :]
        shares = kept.softmax(-1)
        over = shares.cumsum(-1) - shares - self.choice.top_p
        doubtful = (over.abs() <= off) & (self.choice.top_p < 1)
        doubtful[:, -1] |= (kept[:, -1:] - following <= 2 * off).any(1) & (over[:, -1] <= 0)
        moved = (shares * doubtful).amax(1) / self.choice.top_p
        return super().unsure(logits, codes, error + 2 * self.temperature * moved)

    def _places(self, logits: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        kept = likeliest(logits / self.temperature, self.choice)
        return super()._places(kept * self.temperature, numbers)
