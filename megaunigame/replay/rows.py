"""Conversion between rows of a pass and records of the hard buffer."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from megaunigame.models.base import UnifiedModel
from megaunigame.pixels import quantized
from megaunigame.replay.records import RecordLayout, decode_key, encode_key
from megaunigame.step.inputs import IGNORE, UnderstandInputs
from megaunigame.step.labels import label_positions

NUMBERS_BYTES = 4 * 4
"""Bytes of the four float32 after the picture of a packed candidate."""


def pack(pictures: Tensor, losses: Tensor, similarity: Tensor, accepted: Tensor, reference: Tensor) -> Tensor:
    """Candidates as bytes (B, n) on the device, for a single copy to the host.

    `pictures` (B, 3, S, S) in [-1, 1]; `losses`, `similarity`, the result of the filter `accepted`, and the `reference` that
    `losses` are already reduced by: (B,).
    """
    numbers = torch.stack([each.detach().float() for each in (losses, similarity, accepted, reference)], dim=1)
    return torch.cat([quantized(pictures).flatten(1), numbers.view(torch.uint8)], dim=1)


def to_records(layout: RecordLayout, question: UnderstandInputs, packed: Tensor, step: int) -> tuple[np.ndarray, np.ndarray]:
    """(B,) records of questions about packed candidates (B, n), and (B,) bool: which of them the filter accepted.

    Both arguments are on the host.
    """
    records = layout.empty(len(packed))
    width = min(question.tokens.shape[1], layout.max_length)  # padding to a multiple may exceed max_length
    pictures, numbers = packed[:, :-NUMBERS_BYTES], packed[:, -NUMBERS_BYTES:].contiguous().view(torch.float32)
    records["image"] = pictures.numpy().reshape(records["image"].shape)
    records["tokens"][:, :width] = question.tokens[:, :width].numpy()
    records["labelled"][:, :width] = (question.labels[:, :width] != IGNORE).numpy()
    records["slots"][:, :width] = question.image_positions[:, :width].numpy()
    if question.segments is not None:
        records["segments"][:, :width] = question.segments[:, :width].numpy()
    records["length"] = question.attention.sum(1).numpy()
    records["loss"], records["similarity"], accepted, records["reference"] = numbers.T.numpy()
    records["step"] = step
    records["key"] = [encode_key(key) for key in question.keys]
    return records, accepted > 0


def to_rows(model: UnifiedModel, records: np.ndarray) -> UnderstandInputs:
    """Understand rows of the stored questions, on the CPU; `terms` are not set."""
    width = int(records["length"].max())

    def column(name: str) -> Tensor:
        return torch.from_numpy(records[name][:, :width].copy())

    tokens, labeled, segments = column("tokens").long(), column("labelled"), column("segments").long()
    pictures = torch.from_numpy(records["image"].copy()).float() / 127.5 - 1
    used = torch.from_numpy(records["length"].copy())[:, None] > torch.arange(width)
    labels = torch.where(labeled, tokens, IGNORE)
    full = torch.from_numpy(records["length"] == records["tokens"].shape[1])  # such a record may have been cut
    return UnderstandInputs(
        tokens=tokens,
        attention=used,
        terms=torch.zeros(len(records), dtype=torch.long),
        counts=labeled.sum(1).float(),
        labels=labels,
        label_positions=label_positions(labels),
        front_padding=False,
        lengths=records["length"].tolist(),
        segments=segments if bool(segments.any()) else None,
        images=model.as_source(pictures).unsqueeze(1),
        image_valid=torch.ones(len(records), 1, dtype=torch.bool),
        image_positions=column("slots"),
        intact=~full,
        cut=full,
        keys=[decode_key(key) for key in records["key"].tolist()],
    )
