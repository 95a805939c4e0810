"""Which stored codes a processor takes, and the refusal of those of another tokenizer, geometry or side."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megaunigame.errors import ConfigError, DataError
from megaunigame.step.codes import StoredCodes


@dataclass(frozen=True)
class AcceptedCodes:
    """Decided once for a run."""

    tokenizer: str | None
    """Identity of the model's frozen tokenizer; None: it is not loaded, and codes of any are taken."""
    of_sources: bool
    """Whether source pictures are codes, too."""
    partial: bool
    """Whether pictures whose codes were stored for other geometries or sides only are encoded in the pass; False: refused."""

    def of(self, stored: StoredCodes | None, square: tuple[str, int], pictures: int, count: int, key: str) -> Tensor | None:
        """(n, N) codes of the first n `pictures` of a sample, `count` = N codes each; None: they must be encoded.

        `square`: geometry and side. Raises ConfigError, which ends the run, for codes that another tokenizer made or that lack
        this square, and DataError when they cannot be read or are not codes of as many pictures.
        """
        if not pictures:
            return torch.zeros(0, count, dtype=torch.long)
        if stored is None:
            return None
        codes = stored.read()
        if self.tokenizer is not None and codes.tokenizer != self.tokenizer:
            raise ConfigError(
                f"Sample {key} has codes of the tokenizer {codes.tokenizer[:12]}..., and that of this model is "
                f"{self.tokenizer[:12]}... {self._remedy}, or type model.stored_codes=off to encode in every pass."
            )
        if square not in codes.grids:
            if self.partial:
                return None
            geometries = "+".join(dict.fromkeys([*(geometry for geometry, _ in codes.grids), square[0]]))
            raise ConfigError(
                f"Sample {key} has codes for {codes.made_for}, and its row needs {square[0]} at {square[1]} pixels. "
                f"{self._remedy} --set codes.geometries={geometries}, or type model.stored_codes=partial to encode these rows."
            )
        flat = codes.grids[square].flatten(1)
        if len(flat) < pictures or flat.shape[1] != count:
            raise DataError(
                f"Sample {key} has {flat.shape[1]} codes for each of {len(flat)} pictures, and its row needs {count} for each "
                f"of {pictures}. {self._remedy}."
            )
        return flat[:pictures]

    @property
    def _remedy(self) -> str:
        return (
            "Make the codes again: megaunigame prepare annotate SHARDS --out OTHER --tasks codes --existing replace "
            "--model FOLDER --family NAME"
        )
