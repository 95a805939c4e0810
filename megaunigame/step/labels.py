"""Positions of the labels of understand rows.

How many positions are labeled depends on the data. Counting them inside a pass would make the host wait for the device, so
the positions are computed on the host, where the rows are made.
"""

from __future__ import annotations

from torch import Tensor

from megaunigame.step.inputs import IGNORE, UnderstandInputs


def label_positions(labels: Tensor) -> Tensor:
    """(B, S) labels on the host -> (B, P) int64, the positions of each row's labels in ascending order.

    P is the largest number of labels in a row, at least 1. Rows with fewer have position 0 in their last entries: no state
    predicts the first token, so its label is never scored (see `scored_labels`).
    """
    labeled = labels != IGNORE
    labeled[:, 0] = False
    most = max(1, int(labeled.sum(1).max()))
    order = labeled.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    return order.masked_fill(~labeled.gather(1, order), 0)


def scored_labels(inputs: UnderstandInputs, positions: Tensor) -> Tensor:
    """(B, P) positions -> (B, P) labels there; IGNORE at position 0."""
    return inputs.labels.gather(1, positions).masked_fill(positions == 0, IGNORE)
