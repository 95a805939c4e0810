"""What ranks that share their rows ask of a model."""

from __future__ import annotations

from megaunigame.errors import ModelError
from megaunigame.parallel.ranks import Ranks


class RowSharing:
    """A model that refuses; one that does not overrides both."""

    @classmethod
    def check_sequence_ranks(cls, path: str, ranks: int) -> None:
        """Raise ModelError unless so many ranks can share the rows of the model in `path`, by its configuration alone."""
        if ranks > 1:
            raise ModelError(f"{cls.__name__} does not divide a row among ranks. Type engine.sequence_ranks=1.")

    def share_sequence(self, ranks: Ranks) -> None:
        """From now on all of `ranks` make every pass together, with the same rows: each has a part of the positions in the
        layers of the language model. Outside of it they compute the same. Only after `check_sequence_ranks`."""
        self.check_sequence_ranks("", ranks.size)
