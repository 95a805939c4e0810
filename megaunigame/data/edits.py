"""Edits: how a sample says which of its pictures are sources, what was asked, and which pictures came of it.

`edits` of a sample's JSON is a list with an entry for each picture that was made: the instruction, or a list of wordings of it.
The pictures of the sample are in the order in which they come: sources at `<image>` in an instruction, what was made after it::

    {"edits": ["make the cube red", ["now at night", "let it be night"]]}       source, red cube, red cube at night
    {"edits": ["<image><image> put the hat of the second on the first"]}        two sources, the picture that was made
    {"edits": ["paint <image> in the colors of <image> , on paper"]}            the same, with texts between the pictures

Without `<image>` the first instruction has one source, which comes before it. Every later instruction goes on from the picture
that was made before it, and may have further sources.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megaunigame.data.conversation import IMAGE_MARKER, LONGEST_TEXT, MOST_TURNS
from megaunigame.data.decode import Sample
from megaunigame.errors import DataError
from megaunigame.storage.foreign_text import quoted

EDITS = "edits"
"""Key of a sample's JSON."""


@dataclass(frozen=True)
class Edit:
    """One picture that was made."""

    wordings: tuple[tuple[int | str, ...], ...]
    """Each the texts and the numbers of source pictures, counted from 0, in their order; the last part is a text."""
    target: int
    """Number of the picture that was made."""

    @property
    def sources(self) -> int:
        """Source pictures of its own."""
        return sum(isinstance(part, int) for part in self.wordings[0])


def read_edits(edits: Any, pictures: int) -> tuple[Edit, ...]:
    """The edits of a sample with this many pictures.

    Raises DataError, worded as what the sample has, for another form, or another number of pictures than the edits have places.
    """
    read = parse_edits(edits)
    if (places := read[-1].target + 1) != pictures:
        raise DataError(f"has {pictures} picture(s) and {len(read)} edit(s), which have places for {places}")
    return read


def parse_edits(edits: Any) -> tuple[Edit, ...]:
    """The edits, which say themselves how many pictures they have: one more than the last target.

    Raises DataError, worded as what the sample has, for another form.
    """
    if not isinstance(edits, list) or not edits:
        raise DataError(f"has `{EDITS}` that are not a list of instructions: {quoted(edits)}")
    if len(edits) > MOST_TURNS:
        raise DataError(f"has {len(edits):,} edits, more than the {MOST_TURNS:,} that are read")
    read: list[Edit] = []
    place = 0
    for number, given in enumerate(edits):
        wordings = [_pieces(text) for text in (given if isinstance(given, list) else [given])]
        if not wordings:
            raise DataError(f"has no wording of edit {number + 1}")
        counts = sorted({sum(piece is None for piece in pieces) for pieces in wordings})
        if len(counts) > 1:
            raise DataError(f"has wordings of edit {number + 1} with {counts[0]} and with {counts[-1]} {IMAGE_MARKER}")
        if number == 0 and counts == [0]:
            wordings, counts = [(None, *pieces) for pieces in wordings], [1]
        read.append(Edit(tuple(_numbered(pieces, place) for pieces in wordings), place + counts[0]))
        place += counts[0] + 1
    return tuple(read)


def edits_of(sample: Sample) -> tuple[Edit, ...]:
    """The edits of a sample; none where it has no `edits`. Raises DataError for some that cannot be read."""
    given = sample.meta.get(EDITS)
    if given is None:
        return ()
    try:
        return read_edits(given, sample.image_count)
    except DataError as error:
        raise DataError(f"Sample {sample.key} {error}.") from error


def _pieces(wording: Any) -> tuple[str | None, ...]:
    """The texts of an instruction, without null characters, and None at the place of each picture."""
    if not isinstance(wording, str):
        raise DataError(f"has an edit that is not a text but a {type(wording).__name__}: {quoted(wording)}")
    if len(wording) > LONGEST_TEXT:
        raise DataError(f"has an edit of {len(wording):,} characters, more than {LONGEST_TEXT:,}")
    texts = [text.strip() for text in wording.replace("\0", "").split(IMAGE_MARKER)]
    if not texts[-1]:
        raise DataError(f"has an edit that does not end with words: {quoted(wording)}")
    pieces: list[str | None] = []
    for number, text in enumerate(texts):
        pieces += [None] * (number > 0)
        pieces += [text] if text else []
    return tuple(pieces)


def _numbered(pieces: tuple[str | None, ...], first: int) -> tuple[int | str, ...]:
    """The pieces with numbers from `first` on at the places of pictures."""
    numbers = iter(range(first, first + len(pieces)))
    return tuple(next(numbers) if piece is None else piece for piece in pieces)
