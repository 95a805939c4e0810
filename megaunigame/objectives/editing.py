"""Editing: draw a picture from an instruction, source pictures, and what was drawn before it in the same sample.

    L = sum of the family's image loss over targets x_e, given (sources and instructions of the last edits up to e)

One row draws one picture. Where later tokens never see a noised picture, only its clean copy, as in BAGEL (arXiv 2505.14683),
a conversation in which several pictures are drawn has the loss of one row for each of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megaunigame.data.decode import Sample
from megaunigame.data.edits import EDITS, Edit, edits_of
from megaunigame.errors import ConfigError, DataError
from megaunigame.models.base import UnifiedModel
from megaunigame.objectives.base import Objective
from megaunigame.registry import available, find
from megaunigame.settings import at_least, between, half_open, one_of
from megaunigame.step.requests import CROP, GENERATE, GEOMETRIES, RowRequest, StepPlan
from megaunigame.step.rows import GenerateRow, ShownPicture

EDIT = "edit"


class Editing(Objective):
    """Rows of the generate pass with several source pictures, and texts between them. Probabilities are BAGEL's."""

    @dataclass
    class Config:
        rows: int = at_least(0, 4)
        """Rows per micro-step and rank."""
        stream: str = "train"
        """Name of the stream in `data`."""
        weight: float = 1.0
        """Weight of the loss."""
        sources: int = at_least(1, 2)
        """Most pictures that a row shows. Rows must fit into `model.max_length` with so many."""
        history: int = at_least(0, 1)
        """Most earlier edits of the sample that a row shows before its own; how many is drawn, as far as `sources` allows."""
        joined: float = between(0, 1, 0.5)
        """Probability that a row with earlier edits has all their instructions in one prompt, and none of the pictures between
        them; not where such an edit has sources of its own."""
        drop_text: float = half_open(0, 1, 0.1)
        """Probability that an instruction is dropped, each by itself, for classifier-free guidance."""
        drop_latents: float = half_open(0, 1, 0.3)
        """Probability that a source picture is not read as latents, each by itself."""
        drop_seen: float = half_open(0, 1, 0.3)
        """Probability that a source picture is not read through the understanding path, each by itself."""
        geometry: str = one_of(GEOMETRIES, CROP)
        """How the pictures of a row become squares, all alike."""

    def rows(self) -> list[RowRequest]:
        c = self.config
        needs = f"`{EDITS}`, with their pictures"
        shown = {"takes_source": True, "context_pictures": c.sources}
        return [RowRequest(EDIT, GENERATE, c.stream, c.rows, c.weight, needs=needs, geometry=c.geometry, **shown)]

    def check_family(self, family: type[UnifiedModel], name: str, folder: str, plan: StepPlan) -> None:
        if self.config.rows and not family.interleaves:
            able = [n for n in available("models", UnifiedModel) if find("models", n, UnifiedModel).interleaves]
            raise ConfigError(
                f"objectives.{self.name} shows several source pictures in a row, and the family {name!r} draws from one. "
                f"Families that can: {', '.join(able)}. Or type objectives.{self.name}.rows=0."
            )

    def row(self, request: RowRequest, sample: Sample, rng: np.random.Generator) -> GenerateRow | None:
        edits = edits_of(sample)
        if not edits:
            return None
        last = int(rng.integers(len(edits)))
        earlier = int(rng.integers(1 + min(self.config.history, last)))
        while self._shown(edits, last - earlier, last) > self.config.sources:
            if not earlier:
                raise DataError(
                    f"Sample {sample.key}: edit {last + 1} shows {self._shown(edits, last, last)} pictures, more than "
                    f"objectives.{self.name}.sources={self.config.sources}. Raise it, or leave out such samples."
                )
            earlier -= 1
        parts = self._parts(edits, last - earlier, last, rng)
        at_once = rng.random() < self.config.joined
        if earlier and at_once and not any(edit.sources for edit in edits[last - earlier + 1 : last + 1]):
            parts = _joined(parts, earlier)
        *context, prompt = parts
        assert isinstance(prompt, str)  # an instruction ends with words
        kept = [self._kept(part, sample, rng) for part in context]
        dropped = bool(rng.random() < self.config.drop_text)
        target = sample.image_at(edits[last].target)
        return GenerateRow(prompt, target, unconditional=dropped, context=[part for part in kept if part is not None])

    @staticmethod
    def _shown(edits: tuple[Edit, ...], first: int, last: int) -> int:
        """Pictures before the target of `last` in a row that begins with edit `first`."""
        return sum(edit.sources for edit in edits[first : last + 1]) + last - first + (first > 0)

    @staticmethod
    def _parts(edits: tuple[Edit, ...], first: int, last: int, rng: np.random.Generator) -> list[int | str]:
        """Texts and numbers of pictures from edit `first` to the instruction of `last`; a wording of each is drawn."""
        parts: list[int | str] = []
        for number in range(first, last + 1):
            parts += [edits[number - 1].target] if number else []
            wordings = edits[number].wordings
            parts += wordings[int(rng.integers(len(wordings)))]
        return parts

    def _kept(self, part: int | str, sample: Sample, rng: np.random.Generator) -> ShownPicture | str | None:
        """A part of the context after conditions are dropped; None: a dropped text."""
        c = self.config
        if isinstance(part, str):
            return None if rng.random() < c.drop_text else part
        latents, seen = bool(rng.random() >= c.drop_latents), bool(rng.random() >= c.drop_seen)
        return ShownPicture(sample.image_at(part), seen, latents)


def _joined(parts: list[int | str], later: int) -> list[int | str]:
    """Parts of an edit and of `later` ones after it, each a picture and a text -> parts of one edit that asks for all."""
    first, rest = parts[: -2 * later], parts[-2 * later :]
    return [*first[:-1], " ".join(f"{text}." for text in (first[-1], *rest[1::2]))]
