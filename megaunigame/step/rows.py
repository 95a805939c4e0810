"""Neutral rows: what an objective makes of a decoded sample, before any family's tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from megaunigame.step.codes import StoredCodes


@dataclass
class UnderstandRow:
    """Images and a conversation; the loss falls on the answers."""

    images: list[Tensor]
    """uint8 (3, h, w) each; may be empty (text-only conversation)."""
    turns: list[tuple[str, str]]
    """(question, answer) pairs, without `<image>` markers."""
    independent: bool = False
    """True: every turn attends to the images and itself only, so that no answer leaks into the next question."""
    fills: bool = False
    """True: made up to fill `max_length`, so its answer is cut there. Answers of samples never are."""
    codes: StoredCodes | None = None
    """Of `images`; None: not stored."""

    @property
    def text(self) -> tuple[str, str]:
        """The first question and its answer."""
        return self.turns[0]


@dataclass
class GenerateRow:
    """A prompt, an optional source image, and the picture to generate."""

    prompt: str
    target: Tensor
    """uint8 (3, h, w)."""
    source: Tensor | None = None
    """uint8 (3, h, w), or None for text-to-image rows."""
    unconditional: bool = False
    """True: the condition is dropped (text and source together), as classifier-free guidance needs."""
    source_gradient: float = 1.0
    """Factor on the gradient that reaches the understanding path through the source."""
    emphasis: tuple[Tensor, float] | None = None
    """A mask, bool (h, w), that lies over the target, and the weight of the loss inside of it relative to outside; None: 1."""
    target_codes: StoredCodes | None = None
    """Whose first picture is `target`; None: not stored."""
    source_codes: StoredCodes | None = None
    """Whose first picture is `source`; None: not stored."""

    @property
    def text(self) -> tuple[str, str]:
        """The prompt, and no answer."""
        return self.prompt, ""


Row = UnderstandRow | GenerateRow
