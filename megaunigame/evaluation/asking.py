"""Puts questions about pictures to the model and scores the answers.

An answer is right when the greedy token at every labeled position, given the reference before it, is the reference.
That equals an exact match of greedy decoding: decoding follows the reference as long as it is right, and the first
difference is the same in both. It costs one forward per batch instead of one per generated token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megaunigame.data.conversation import question_answers
from megaunigame.data.decode import Sample
from megaunigame.errors import DataError
from megaunigame.evaluation.lockstep import Item, batches, together
from megaunigame.evaluation.metrics import Answer
from megaunigame.models.base import UnifiedModel
from megaunigame.parallel.ranks import Ranks
from megaunigame.step.inputs import IGNORE, UnderstandInputs
from megaunigame.step.rows import UnderstandRow
from megaunigame.storage.foreign_text import quoted

UNNAMED_KIND = "question"


@dataclass(frozen=True)
class Question:
    text: str
    reference: str
    kind: str


@dataclass(frozen=True)
class Sheet:
    """A picture and the questions of a sample about it."""

    position: int
    sample: Sample
    image: Tensor | None
    """uint8 (3, h, w): the sample's image, or a picture in its place."""
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class _SheetItem(Item):
    sheet: Sheet


def questions_of(sample: Sample, skip_kinds: Sequence[str]) -> tuple[Question, ...]:
    """The question-answer pairs of a sample, without image markers and without the kinds to skip.

    Raises DataError when the sample has no conversation or its speakers do not alternate.
    """
    pairs = question_answers(sample, apart=True)
    kinds = sample.meta["kinds"] if "kinds" in sample.meta else [UNNAMED_KIND] * len(pairs)
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise DataError(f"Sample {sample.key}: `kinds` must be a list of texts; got {quoted(kinds)}.")
    if len(kinds) != len(pairs):
        number = f"{len(pairs)} question{'s' * (len(pairs) != 1)}"
        raise DataError(f"Sample {sample.key} has {len(kinds)} kinds for {number} with an answer.")
    asked = (Question(*pair, kind) for pair, kind in zip(pairs, kinds, strict=True))
    return tuple(question for question in asked if question.kind not in skip_kinds)


def ask(model: UnifiedModel, data_ranks: Ranks, sheets: Sequence[Sheet], *, batch: int, per_row: int) -> list[Answer]:
    """Ask all questions of this rank's sheets, each alone with its picture.

    Up to `per_row` questions of a picture share a row as independent turns, which do not see each other. All ranks must
    call this together; the answers are those of this rank, in the order of the sheets.
    """
    items = [
        _item(dataclasses.replace(sheet, questions=sheet.questions[first : first + per_row]))
        for sheet in sheets
        for first in range(0, len(sheet.questions), per_row)
    ]
    answers: list[Answer] = []
    for present, inputs in batches(model, data_ranks, items, UnderstandInputs, batch):
        sheets_asked = [item.sheet for item in present]
        positions = together(data_ranks, _positions, inputs, sheets_asked)
        predictions = model.predict(inputs.to(data_ranks.device)).cpu()
        for row, sheet in enumerate(sheets_asked):
            answers += _score(model, sheet, positions[row], inputs.labels[row], predictions[row])
    return answers


def _positions(inputs: UnderstandInputs, sheets: Sequence[Sheet]) -> list[list[Tensor]]:
    """Per sheet and question, the positions of the answer.

    Raises DataError when questions were cut because they share a row; one that is alone is cut as in training.
    """
    questions = [len(sheet.questions) for sheet in sheets]
    for row, number in enumerate(questions):
        if number > 1 and inputs.cut is not None and inputs.cut[row]:
            raise DataError(
                f"The {number} questions about sample {inputs.keys[row]} do not fit into a row. "
                "Lower questions_per_row of the suite or raise model.max_length."
            )
    return [[answer_positions(inputs, row, k, n) for k in range(n)] for row, n in enumerate(questions)]


def _item(sheet: Sheet) -> _SheetItem:
    turns = [(question.text, question.reference) for question in sheet.questions]
    images = [] if sheet.image is None else [sheet.image, *sheet.sample.images[1:]]
    row = UnderstandRow(images, turns, independent=len(turns) > 1)  # which needs a mask
    return _SheetItem(sheet.position, sheet.sample.key, row, sheet)


def _score(
    model: UnifiedModel, sheet: Sheet, positions: Sequence[Tensor], labels: Tensor, predictions: Tensor
) -> Iterator[Answer]:
    meta = sheet.sample.meta
    for question, asked in zip(sheet.questions, positions, strict=True):
        said, wanted = predictions[asked], labels[asked]
        yield Answer(
            position=sheet.position,
            key=sheet.sample.key,
            question=question.text,
            reference=question.reference,
            predicted=model.processor.text(said.tolist()),
            correct=torch.equal(said, wanted),
            kind=question.kind,
            pair=str(meta["pair"]) if "pair" in meta else None,
            options=open_answers(meta, question.text, question.reference),
        )


def answer_positions(inputs: UnderstandInputs, row: int, turn: int, turns: int) -> Tensor:
    """(S,) bool: the labeled positions of one independent turn of a row.

    Raises DataError when the turn has none: the row was too long and the processor dropped it.
    """
    labeled = inputs.labels[row] != IGNORE
    if turns > 1:
        assert inputs.segments is not None
        labeled &= inputs.segments[row] == turn + 1
    if not labeled.any():
        raise DataError(
            f"Question {turn + 1} of {turns} about sample {inputs.keys[row]} does not fit into a row. "
            "Lower questions_per_row of the suite or raise model.max_length."
        )
    return labeled


def open_answers(meta: dict, question: str, reference: str) -> int | None:
    """Number of possible answers when the answer is the color of one of the scene's objects, else None.

    A question that names two or more visible colors ("is the red or the blue object nearer?") allows those, any other allows
    all visible ones.
    """
    objects = meta["objects"] if isinstance(meta.get("objects"), list) else []  # other data sets mean other things by it
    visible = {str(thing["color"]) for thing in objects if isinstance(thing, dict) and "color" in thing}
    if reference not in visible:
        return None
    named = visible & set(question.lower().replace("?", " ").replace(",", " ").split())
    return len(named) if len(named) > 1 and reference in named else len(visible)
