"""Between the rows of a pass and the records of the hard buffer."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from megaunigame.adversary.records import RecordLayout, decode_key, encode_key
from megaunigame.models.base import UnifiedModel
from megaunigame.passes import IGNORE, PassInputs
from megaunigame.pixels import to_bytes


def to_records(
    layout: RecordLayout, question: PassInputs, pictures: Tensor, losses: Tensor, similarity: Tensor, step: int
) -> np.ndarray:
    """(B,) records of questions about `pictures` (B, 3, S, S) in [-1, 1], with per-row `losses` and `similarity` (B,)."""
    assert question.labels is not None and question.image_slots is not None
    records = layout.empty(len(pictures))
    width = min(question.tokens.shape[1], layout.max_length)  # rows near the longest are padded beyond it
    records["image"] = to_bytes(pictures).numpy()
    records["tokens"][:, :width] = question.tokens[:, :width].cpu().numpy()
    records["labelled"][:, :width] = (question.labels[:, :width] != IGNORE).cpu().numpy()
    records["slots"][:, :width] = question.image_slots[:, :width].cpu().numpy()
    if question.segments is not None:
        records["segments"][:, :width] = question.segments[:, :width].cpu().numpy()
    records["length"] = question.attention.sum(1).cpu().numpy()
    records["loss"] = losses.detach().float().cpu().numpy()
    records["similarity"] = similarity.detach().float().cpu().numpy()
    records["step"] = step
    records["key"] = [encode_key(key) for key in question.keys]
    return records


def to_rows(model: UnifiedModel, records: np.ndarray) -> PassInputs:
    """Understand rows of the stored questions, on the CPU; `terms` mean nothing yet."""
    width = int(records["length"].max())

    def column(name: str) -> Tensor:
        return torch.from_numpy(records[name][:, :width].copy())

    tokens, labelled, segments = column("tokens").long(), column("labelled"), column("segments").long()
    pictures = torch.from_numpy(records["image"].copy()).float() / 127.5 - 1
    used = torch.from_numpy(records["length"].copy())[:, None] > torch.arange(width)
    return PassInputs(
        tokens=tokens,
        attention=used,
        terms=torch.zeros(len(records), dtype=torch.long),
        counts=labelled.sum(1).float(),
        labels=torch.where(labelled, tokens, IGNORE),
        segments=segments if bool(segments.any()) else None,
        images=model.as_source(pictures).unsqueeze(1),
        image_valid=torch.ones(len(records), 1, dtype=torch.bool),
        image_slots=column("slots"),
        intact=torch.from_numpy(records["length"] < records["tokens"].shape[1]),  # a full record may have been cut
        keys=[decode_key(key) for key in records["key"].tolist()],
    )
