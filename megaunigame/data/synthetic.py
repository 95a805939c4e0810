"""Rows without data: random pictures and words of the largest legal length. To measure the cost of a step."""

from __future__ import annotations

import zlib

import numpy as np
import torch

from megaunigame.data.loading.stream import Draw, MicroBatches
from megaunigame.data.sources.base import SampleRef
from megaunigame.step.amounts import Amounts
from megaunigame.step.requests import GENERATE, RowRequest
from megaunigame.step.rows import GenerateRow, Row, UnderstandRow

LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))


class SyntheticSource:
    """Placeholder for a source; rows are made by `SyntheticMicroBatches`."""

    location = "synthetic rows"
    identity: dict[str, str | int] = {}
    epoch: int | None = None

    def __init__(self, seed: int):
        self.seed = seed

    def find(self, position: int, attempt: int) -> SampleRef:
        raise RuntimeError("Synthetic rows are not samples of anything.")

    def uncounted(self, tokenizer: str) -> list[str]:
        return []

    def amounts(self, positions: range, tokenizer: str) -> Amounts:
        """All alike, as the rows are."""
        return Amounts.empty(len(positions))


class SyntheticMicroBatches(MicroBatches):
    """Micro-batches whose rows all have the largest legal length, equal in shape on all ranks."""

    def _row(self, request: RowRequest, name: str, position: int, draw: Draw) -> tuple[Row | None, str]:
        rng = np.random.default_rng([self.streams[name].source.seed, zlib.crc32(request.term.encode()), position])
        return self._random_row(request, rng), f"synthetic {position}"

    def _random_row(self, request: RowRequest, rng: np.random.Generator) -> Row:
        side = self.processor.image_size
        picture = torch.from_numpy(rng.integers(0, 256, (3, side, side), dtype=np.uint8))
        text = " ".join(LETTERS[rng.integers(0, len(LETTERS), self.processor.max_length)])  # a word is a token or more
        if request.pass_name == GENERATE:
            return GenerateRow.of_all_images(request, text, picture)
        return UnderstandRow([picture], [("a", text)], fills=True)
