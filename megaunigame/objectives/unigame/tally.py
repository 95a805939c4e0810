"""Counts of one step's attacks on one rank; sums over ranks give the metrics of the step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megaunigame.objectives.unigame import names


@dataclass
class Totals:
    """Every field is a sum, so that ranks can be added."""

    pictures: float
    """Attacked pictures."""
    plausible: float
    """Attacked pictures that the filter accepted."""
    similarity: float
    changed: float
    delta: float
    loss: float
    positions: float
    not_finite: float
    """Candidates dropped because of their loss."""
    replayed: float
    """Rows of the step that came from the buffer."""

    def metrics(self, filtered: bool) -> dict[str, float]:
        """Means over the attacked pictures; nothing when there were none."""
        metrics = {names.BUFFER_NOT_FINITE: self.not_finite}
        if self.pictures:
            metrics |= {
                names.BUFFER_ACCEPT_RATE: self.plausible / self.pictures,
                names.ADVERSARY_CHANGED_CODES: self.changed / self.pictures,
                names.ADVERSARY_DELTA: self.delta / self.pictures,
            }
            if filtered:
                metrics[names.BUFFER_SIMILARITY] = self.similarity / self.pictures
        if self.positions:
            metrics[names.LOSS_ADVERSARIAL] = self.loss / self.positions
        return metrics


class Tally:
    """Sums on the device; the host reads nothing before the step is over."""

    def __init__(self, device: torch.device):
        self._attacked = torch.zeros(7, dtype=torch.float64, device=device)
        """The fields of `Totals` from `pictures` to `positions`."""
        self.not_finite = 0
        self.replayed = 0

    def add(
        self, real: Tensor, plausible: Tensor, similarity: Tensor, loss: Tensor, counts: Tensor, changed: Tensor, delta: Tensor
    ) -> None:
        """One candidate per row, all (B,): `real` is False for dummy rows; `loss` is summed over `counts` positions."""
        finite = real & loss.isfinite()
        rows = [real, real & plausible, *(torch.where(real, each, 0) for each in (similarity, changed, delta))]
        rows += [torch.where(finite, each, 0) for each in (loss, counts)]
        self._attacked += torch.stack([row.double().sum() for row in rows])

    def sums(self) -> Tensor:
        """The fields of `Totals`, float64 on the device."""
        host = torch.tensor([self.not_finite, self.replayed], dtype=torch.float64)
        return torch.cat([self._attacked, host.to(self._attacked.device, non_blocking=True)])
