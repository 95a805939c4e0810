"""Pictures that travel as bytes become the values that a model reads: once, wherever the rows have been meanwhile."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megaunigame.data.loading.packing import pack
from megaunigame.step.inputs import GenerateInputs, UnderstandInputs, put_rows, take_rows, with_images
from megaunigame.step.kept_inputs import to_parts
from megaunigame.step.levels import Levels
from tests.passes import pass_inputs

CPU = torch.device("cpu")
SCALE = (1 / (255 * torch.tensor([0.229, 0.5, 0.31]))).view(3, 1, 1)
SHIFT = -torch.tensor([0.485, 0.5, 0.41]).view(3, 1, 1)


def expected(pictures: Tensor, given: Tensor) -> Tensor:
    """One picture at a time, as the processors always did it."""
    values = torch.zeros(pictures.shape)
    for place in given.nonzero().tolist():
        values[tuple(place)] = torch.addcmul(SHIFT, pictures[tuple(place)].float(), SCALE)
    return values


def questions(given: list[list[bool]], seed: int, *, values: bool = False) -> UnderstandInputs:
    rows, valid = len(given), torch.tensor(given)
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randint(0, 256, (*valid.shape, 3, 19, 23), dtype=torch.uint8, generator=generator)
    return pass_inputs(
        UnderstandInputs,
        torch.full((rows, 8), seed),
        torch.ones(rows, 8, dtype=torch.bool),
        labels=torch.ones(rows, 8, dtype=torch.long),
        images=expected(pictures, valid) if values else pictures,
        image_valid=valid,
        levels={} if values else {"images": Levels(SCALE, SHIFT, valid)},
    )


OLD, NEW = [[True, False], [True, True], [False, False], [False, False]], [[True], [False]]


def test_values_are_those_of_single_pictures_and_zero_without_one():
    inputs = questions(OLD, 1)
    found = inputs.to(CPU)
    assert torch.equal(found.images, expected(inputs.images, inputs.image_valid))
    assert found.images.dtype == torch.float32 and not found.levels and inputs.images.dtype == torch.uint8
    assert torch.equal(found.to(CPU).images, found.images)
    assert found.with_values() is found
    large = torch.randint(0, 256, (2, 3, 384, 384), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    given = torch.tensor([True, True])
    assert torch.equal(Levels(SCALE, SHIFT, given).values(large), expected(large, given))


def test_a_worker_sends_a_quarter():
    sizes = [len(pack(questions(OLD, 1, values=values)).memory) for values in (False, True)]
    assert sizes[0] < 0.3 * sizes[1]
    assert torch.equal(pack(questions(OLD, 1)).unpacked().to(CPU).images, questions(OLD, 1, values=True).images)


@pytest.mark.parametrize("old", [False, True], ids=["old bytes", "old values"])
@pytest.mark.parametrize("new", [False, True], ids=["new bytes", "new values"])
def test_rows_put_in_before_the_values_are_made(old: bool, new: bool):
    at = slice(2, 4)
    found = put_rows(questions(OLD, 1, values=old), at, questions(NEW, 3, values=new))
    assert (found.images.dtype == torch.uint8) == (not old and not new)
    whole = put_rows(questions(OLD, 1, values=True), at, questions(NEW, 3, values=True))
    assert torch.equal(found.to(CPU).images, whole.images)
    assert torch.equal(take_rows(found, slice(1, 3)).to(CPU).images, whole.images[1:3])


def test_other_pictures_are_values():
    other = torch.rand(4, 1, 3, 5, 5)
    found = with_images(questions(OLD, 1), other).to(CPU)
    assert torch.equal(found.images, other)


def test_kept_rows_hold_values():
    tensors, fields = to_parts(questions(OLD, 1))
    assert torch.equal(tensors["images"], questions(OLD, 1, values=True).images) and "levels" not in fields


def test_every_picture_of_a_generate_pass():
    pictures = torch.arange(96, dtype=torch.uint8).view(2, 3, 4, 4)
    given = torch.tensor([True, False])
    inputs = pass_inputs(
        GenerateInputs,
        torch.ones(2, 8, dtype=torch.long),
        torch.ones(2, 8, dtype=torch.bool),
        targets=pictures,
        source_pixels=pictures[:, None],
        levels={"targets": Levels(SCALE, SHIFT, given), "source_pixels": Levels(2 * SCALE, SHIFT, given[:, None])},
    )
    found = inputs.to(CPU)
    assert torch.equal(found.targets, expected(pictures, given))
    shift = SHIFT * given.view(2, 1, 1, 1)
    torch.testing.assert_close(found.source_pixels[:, 0] - shift, 2 * (found.targets - shift))
