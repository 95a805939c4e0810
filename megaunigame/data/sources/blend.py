"""Several sources as one, in fixed proportions.

Positions are divided into blocks of K = (sum of the weights). In every block source j has exactly weight_j positions, in a
random order given by (seed, block). So the c-th position of source j in block b is its position b * weight_j + c: any
position is computed directly, and each source has its own epochs, independent of the others.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from megaunigame.data.sources.base import SampleRef, Source
from megaunigame.data.sources.order import permutation
from megaunigame.errors import ConfigError, LostShard
from megaunigame.step.amounts import Amounts


class Blend:
    """`sources` by name, with fixed proportions in every block."""

    def __init__(self, sources: Mapping[str, Source], weights: Mapping[str, int], seed: int):
        """Raises ConfigError unless all weights are whole numbers above 0."""
        wrong = {name: weight for name, weight in weights.items() if weight < 1}
        if wrong:
            raise ConfigError(f"Weights of a mix are whole numbers from 1 on; got {wrong}. Leave out unwanted data sets.")
        self.names = sorted(sources)
        self.sources = [sources[name] for name in self.names]
        common = math.gcd(*weights.values())
        self.weights = tuple(weights[name] // common for name in self.names)
        """Positions of each source in a block."""
        self.block = sum(self.weights)
        """K: positions in a block."""
        self.seed = seed
        epochs = [source.epoch for source in self.sources]
        self.epoch = None if None in epochs else sum(epoch for epoch in epochs if epoch is not None)
        self.location = ", ".join(source.location for source in self.sources)
        self.identity: dict[str, str | int] = {}
        for name, source, weight in zip(self.names, self.sources, self.weights, strict=True):
            self.identity |= {f"{name}.{what}": value for what, value in source.identity.items()}
            self.identity[f"{name}.weight (in lowest terms)"] = weight

    def locate(self, position: int) -> tuple[int, int]:
        """(source, position in the source) of a position >= 0."""
        block, offset = divmod(position, self.block)
        source_of, count_of = _order_of(self.weights, self.seed, block)
        source = int(source_of[offset])
        return source, block * self.weights[source] + int(count_of[offset])

    def find(self, position: int, attempt: int) -> SampleRef:
        source, inner = self.locate(position)
        name = self.names[source]
        try:
            ref = self.sources[source].find(inner, attempt)
        except LostShard as error:
            raise LostShard(str(error), f"{name}/{error.shard}") from error
        return dataclasses.replace(ref, shard=f"{name}/{ref.shard}")

    def uncounted(self, tokenizer: str) -> list[str]:
        return [location for source in self.sources for location in source.uncounted(tokenizer)]

    def amounts(self, positions: range, tokenizer: str) -> Amounts:
        """Consecutive positions are consecutive ones of every source."""
        source_of, inner = np.array([self.locate(position) for position in positions], dtype=np.int64).reshape(-1, 2).T
        found = Amounts.empty(len(positions))
        for source in np.unique(source_of).tolist():
            at = np.flatnonzero(source_of == source)
            name, theirs = self.names[source], range(int(inner[at[0]]), int(inner[at[-1]]) + 1)
            try:
                found.put(at, self.sources[source].amounts(theirs, tokenizer))
            except LostShard as error:
                raise LostShard(str(error), f"{name}/{error.shard}") from error
        return found


@lru_cache(maxsize=64)
def _order_of(weights: tuple[int, ...], seed: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Per position of the block: its source, and how many positions of that source come before it."""
    source_of = np.repeat(np.arange(len(weights)), weights)[permutation(sum(weights), seed, block)]
    count_of = np.empty(sum(weights), dtype=np.int64)
    for source, weight in enumerate(weights):
        count_of[source_of == source] = np.arange(weight)
    return source_of, count_of
