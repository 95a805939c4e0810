"""Stored codes of the rows of a pass: stacking them, and completing them by encoding the other rows."""

from __future__ import annotations

import torch

from megaunigame.step.codes import completed, stacked
from megaunigame.step.inputs import UnderstandInputs, put_rows, take_rows, with_images
from tests.passes import pass_inputs


def test_rows_without_codes_are_told_apart_from_rows_without_pictures():
    two, none = torch.tensor([[3, 1, 4], [1, 5, 9]]), torch.zeros(0, 3, dtype=torch.long)
    codes, coded = stacked([two, None, none, two[:1]], places=3)
    assert codes.tolist() == [[[3, 1, 4], [1, 5, 9], [0, 0, 0]], [[0] * 3] * 3, [[0] * 3] * 3, [[3, 1, 4], [0] * 3, [0] * 3]]
    assert coded == [True, False, True, True]
    assert stacked([None, none], places=2) == (None, [])


def test_only_rows_without_codes_are_encoded():
    asked = []

    def encode(pixels):
        asked.append(pixels.flatten().tolist())
        return pixels.long() * 10

    pixels, stored = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[7], [0], [0]])
    assert completed(stored, [True, False, False], pixels, encode).tolist() == [[7], [20], [30]]
    assert completed(stored, [True, True, True], pixels, encode) is stored
    assert completed(None, [], pixels, encode).tolist() == [[10], [20], [30]]
    assert asked == [[2.0, 3.0], [1.0, 2.0, 3.0]]


def questions(rows: int, places: int, codes: torch.Tensor | None, coded: list[bool]) -> UnderstandInputs:
    return pass_inputs(
        UnderstandInputs,
        torch.zeros(rows, 4, dtype=torch.long),
        images=torch.zeros(rows, places, 3, 2, 2),
        image_valid=torch.ones(rows, places, dtype=torch.bool),
        source_codes=codes,
        source_coded=coded,
    )


def test_rows_that_are_put_in_have_their_own_codes():
    codes = torch.arange(1, 7).view(3, 1, 2)
    clean = questions(3, 1, codes, [True, False, True])
    attacked = with_images(questions(1, 2, codes[:1].expand(1, 2, 2), [True]), torch.ones(1, 2, 3, 2, 2))
    assert attacked.source_codes is None and attacked.source_coded == [] and attacked.images.min() == 1
    mixed = put_rows(clean, slice(2, 3), attacked)
    assert mixed.source_coded == [True, False, False]
    assert mixed.source_codes.tolist() == [[[1, 2], [0, 0]], [[3, 4], [0, 0]], [[0, 0], [0, 0]]]
    stored = put_rows(questions(3, 1, None, []), slice(0, 1), questions(1, 1, codes[2:], [True]))
    assert stored.source_coded == [True, False, False] and stored.source_codes[0].tolist() == [[5, 6]]
    assert put_rows(questions(2, 1, None, []), slice(0, 1), questions(1, 1, None, [])).source_codes is None
    taken = take_rows(mixed, slice(1, 3))
    assert taken.source_coded == [False, False] and len(taken.source_codes) == 2
