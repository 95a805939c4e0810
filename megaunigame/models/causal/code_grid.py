"""Layout of a picture's codes in a sequence: line by line, with or without a token at the end of a line."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CodeGrid:
    """A picture of `height` x `width` codes. Code c is the token `first` + c."""

    height: int
    width: int
    first: int
    codebook: int
    """Number of codes."""
    line_end: int | None = None
    """The token at the end of a line; None: there is none."""
    last_line_ends: bool = True
    """Whether it also follows the last line."""

    @property
    def count(self) -> int:
        """N: codes of the picture."""
        return self.height * self.width

    @property
    def length(self) -> int:
        """Tokens of the picture, line ends included."""
        if self.line_end is None:
            return self.count
        return self.count + self.height - (not self.last_line_ends)

    @property
    def read(self) -> int:
        """Tokens of the picture before its last code: those that are read while it is drawn."""
        return self.length - 1 - (self.line_end is not None and self.last_line_ends)

    @property
    def ids(self) -> slice:
        """The tokens that are codes."""
        return slice(self.first, self.first + self.codebook)

    @property
    def size(self) -> str:
        """Height and width in codes, as several families write it before the codes."""
        return f"{self.height}*{self.width}"

    def places(self, device: torch.device | str = "cpu") -> Tensor:
        """(N,) int64: positions of the codes among the tokens of the picture."""
        codes = torch.arange(self.count, device=device)
        return codes if self.line_end is None else codes + codes // self.width

    def places_before(self, code: int) -> list[int]:
        """Positions of the codes before number `code`."""
        return [before if self.line_end is None else before + before // self.width for before in range(code)]

    def tokens(self, codes: Tensor) -> Tensor:
        """(B, N) codes -> (B, length) tokens."""
        if self.line_end is None:
            return codes + self.first
        tokens = codes.new_full((len(codes), self.length), self.line_end)
        return tokens.index_copy(1, self.places(codes.device), codes + self.first)

    def arranged(self, codes: Tensor) -> Tensor:
        """(B, N, ...) -> (B, height, width, ...)."""
        return codes.unflatten(1, (self.height, self.width))
