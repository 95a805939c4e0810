"""Counts of one step's attacks on one rank; sums over ranks give the metrics of the step."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from torch import Tensor

from megaunigame.monitoring import names


@dataclass
class Tally:
    """Every field is a sum, so that ranks can be added."""

    pictures: float = 0.0
    """Attacked pictures."""
    plausible: float = 0.0
    """Of which the filter let pass."""
    similarity: float = 0.0
    changed: float = 0.0
    delta: float = 0.0
    loss: float = 0.0
    positions: float = 0.0
    not_finite: float = 0.0
    """Candidates dropped because of their loss."""
    replayed: float = 0.0
    """Rows of the step that came from the buffer."""

    def add(
        self, real: Tensor, plausible: Tensor, similarity: Tensor, loss: Tensor, counts: Tensor, changed: Tensor, delta: Tensor
    ) -> None:
        """One candidate per row, all (B,): `real` marks rows that are no dummies; `loss` is summed over `counts` positions."""
        self.pictures += float(real.sum())
        self.plausible += float((real & plausible).sum())
        self.similarity += float(similarity[real].sum())
        self.changed += float(changed[real].sum())
        self.delta += float(delta[real].sum())
        finite = real & loss.isfinite()
        self.loss += float(loss[finite].sum())
        self.positions += float(counts[finite].sum())

    def sums(self) -> list[float]:
        return list(astuple(self))

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
