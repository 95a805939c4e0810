"""Counts of one step's attacks on one rank; sums over ranks give the metrics of the step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megaunigame.objectives.unigame import names
from megaunigame.objectives.unigame.undisturbed import Undisturbed


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
    right: float
    """Attacked pictures answered right without the perturbation."""
    loss: float
    positions: float
    undisturbed: float
    """Loss without the perturbation, over the same positions."""
    not_finite: float
    """Candidates dropped because of their loss."""
    replayed: float
    """Rows of the step that came from the buffer."""
    empty: float
    """Rows of the step for which the buffer had no picture."""
    distinct: float
    """Replayed rows whose picture had not been replayed before."""
    drawn: float
    """How often the pictures of the replayed rows have been replayed."""

    def metrics(self, filtered: bool, compared: bool) -> dict[str, float]:
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
            if compared:
                metrics[names.BUFFER_RIGHT] = self.right / self.pictures
        if self.positions:
            metrics[names.LOSS_ADVERSARIAL] = self.loss / self.positions
            if compared:
                metrics[names.LOSS_UNDISTURBED] = self.undisturbed / self.positions
        return metrics


@dataclass
class Attacked:
    """One candidate per row, all (B,)."""

    real: Tensor
    """False for dummy rows."""
    plausible: Tensor
    similarity: Tensor
    loss: Tensor
    """Summed over `counts` positions."""
    counts: Tensor
    changed: Tensor
    delta: Tensor
    undisturbed: Undisturbed


class Tally:
    """Sums on the device; the host reads nothing before the step is over."""

    def __init__(self, device: torch.device):
        self._attacked = torch.zeros(9, dtype=torch.float64, device=device)
        """The fields of `Totals` from `pictures` to `undisturbed`."""
        self.not_finite = 0
        self.replayed = self.empty = self.distinct = self.drawn = 0

    def add(self, rows: Attacked) -> None:
        """Count one candidate per row."""
        real, plain = rows.real, rows.undisturbed
        finite = real & rows.loss.isfinite() & plain.losses.isfinite()
        sums = [real, real & rows.plausible]
        sums += [torch.where(real, each, 0) for each in (rows.similarity, rows.changed, rows.delta, plain.right)]
        sums += [torch.where(finite, each, 0) for each in (rows.loss, rows.counts, plain.losses)]
        self._attacked += torch.stack([each.double().sum() for each in sums])

    def sums(self) -> Tensor:
        """The fields of `Totals`, float64 on the device."""
        counted = [self.not_finite, self.replayed, self.empty, self.distinct, self.drawn]
        host = torch.tensor(counted, dtype=torch.float64)
        return torch.cat([self._attacked, host.to(self._attacked.device, non_blocking=True)])
