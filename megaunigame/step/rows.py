"""Neutral rows: what an objective makes of a decoded sample, before any family's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from megaunigame.step.codes import StoredCodes
from megaunigame.step.requests import RowRequest


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


@dataclass(frozen=True)
class ShownPicture:
    """A source image in the context of a request, which a family may read in two ways. One that is read in neither is a dropped
    condition, which keeps its place."""

    picture: Tensor
    """uint8 (3, h, w)."""
    seen: bool = True
    """Whether it is read through the understanding path."""
    latents: bool = True
    """Whether it is read as the frozen tokenizer encodes it."""


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
    context: Sequence[ShownPicture | str] = ()
    """Source images and texts before the prompt, in their order, in place of `source`; for families that interleave them."""

    def __post_init__(self) -> None:
        if self.context and self.source is not None:
            raise ValueError("A row has either a source image or a context; put the source into the context.")

    @classmethod
    def of_all_images(cls, request: RowRequest, text: str, picture: Tensor) -> GenerateRow:
        """A row that shows as many images as any row of `request` may; `picture` is each of them, and the target."""
        if request.context_pictures:
            return cls(text, picture, context=[ShownPicture(picture)] * request.context_pictures)
        return cls(text, picture, source=picture if request.takes_source else None)

    @property
    def text(self) -> tuple[str, str]:
        """The prompt, and no answer."""
        return self.prompt, ""


Row = UnderstandRow | GenerateRow
