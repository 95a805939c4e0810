"""Layout of a picture's codes in a sequence: line by line, with an end-of-line token after each line, also the last."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class CodeGrid:
    """A picture of `height` x `width` codes. Code c is the token `first` + c."""

    height: int
    width: int
    first: int
    codebook: int
    """Number of codes."""
    line_end: int

    @property
    def count(self) -> int:
        """N: codes of the picture."""
        return self.height * self.width

    @property
    def length(self) -> int:
        """Tokens of the picture, line ends included."""
        return self.height * (self.width + 1)

    @property
    def ids(self) -> slice:
        """The tokens that are codes."""
        return slice(self.first, self.first + self.codebook)

    @property
    def size(self) -> str:
        """The text before the codes."""
        return f"{self.height}*{self.width}"

    def places(self, device: torch.device | str = "cpu") -> Tensor:
        """(N,) int64: positions of the codes among the tokens of the picture."""
        codes = torch.arange(self.count, device=device)
        return codes + codes // self.width

    def places_before(self, code: int) -> list[int]:
        """Positions of the codes before number `code`."""
        return [before + before // self.width for before in range(code)]

    def tokens(self, codes: Tensor) -> Tensor:
        """(B, N) codes -> (B, length) tokens."""
        return F.pad(self.arranged(codes + self.first), (0, 1), value=self.line_end).flatten(1)

    def arranged(self, codes: Tensor) -> Tensor:
        """(B, N, ...) -> (B, height, width, ...)."""
        return codes.unflatten(1, (self.height, self.width))
