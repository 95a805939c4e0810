"""The ranks of a run by what they divide, so that code says which ranks it means."""

from __future__ import annotations

from dataclasses import dataclass

from megaunigame.parallel.ranks import Ranks


@dataclass(frozen=True)
class Mesh:
    """Seen from this rank."""

    world: Ranks
    """All ranks: they divide weights, gradients and optimizer, add up losses, write checkpoints, and stop together."""
    data: Ranks
    """Ranks that read different samples: they divide streams, the rows of a step, the hard buffer and evaluations."""

    @classmethod
    def of(cls, world: Ranks) -> Mesh:
        """Every rank is a data rank."""
        return cls(world, data=world)
