"""Edits of a sample: which picture is a source, which was made, and what was asked."""

from __future__ import annotations

import pytest
import torch

from megaunigame.data.decode import Sample
from megaunigame.data.edits import Edit, edits_of, read_edits
from megaunigame.errors import DataError


@pytest.mark.parametrize(
    ("edits", "read"),
    [
        (["make it red"], [(((0, "make it red"),), 1)]),
        (["make it red", ["now at night ", "let it be night"]],
         [(((0, "make it red"),), 1), ((("now at night",), ("let it be night",)), 2)]),
        (["<image><image>\nthe hat of the second on the first"], [(((0, 1, "the hat of the second on the first"),), 2)]),
        (["paint <image> in the colors of <image> , on paper"], [((("paint", 0, "in the colors of", 1, ", on paper"),), 2)]),
        (["<image> red", "with the hat of <image> on", "smaller"],
         [(((0, "red"),), 1), ((("with the hat of", 2, "on"),), 3), ((("smaller",),), 4)]),
        (["null\0 characters"], [(((0, "null characters"),), 1)]),
    ],
)  # fmt: skip
def test_pictures_are_in_the_order_in_which_they_come(edits, read):
    assert read_edits(edits, read[-1][1] + 1) == tuple(Edit(wordings, target) for wordings, target in read)


@pytest.mark.parametrize(
    ("edits", "pictures", "problem"),
    [
        ("make it red", 2, "that are not a list of instructions"),
        ([], 1, "that are not a list of instructions"),
        ([[]], 2, "no wording of edit 1"),
        ([{"text": "a"}], 2, "not a text but a dict"),
        ([["<image> red", "red"]], 2, "wordings of edit 1 with 0 and with 1 <image>"),
        (["a ball like <image>"], 2, "does not end with words"),
        (["  "], 2, "does not end with words"),
        (["red", "blue"], 2, "has 2 picture\\(s\\) and 2 edit\\(s\\), which have places for 3"),
        (["a" * 1_000_001], 2, "an edit of 1,000,001 characters"),
        (["a"] * 10_001, 10_002, "10,001 edits"),
    ],
)
def test_what_cannot_be_read_says_why(edits, pictures, problem):
    with pytest.raises(DataError, match=problem):
        read_edits(edits, pictures)


def test_the_edits_of_a_sample():
    image = torch.zeros(3, 2, 2, dtype=torch.uint8)
    assert edits_of(Sample("k", {}, image=image)) == ()
    assert len(edits_of(Sample("k", {"edits": ["red"]}, image=image, further=[image]))) == 1
    with pytest.raises(DataError, match="Sample k has 1 picture"):
        edits_of(Sample("k", {"edits": ["red"]}, image=image))


def test_one_image_of_several_is_decoded_alone():
    decoded = []

    def image(number):
        def decode():
            decoded.append(number)
            return torch.full((3, 2, 2), number, dtype=torch.uint8)

        return decode

    sample = Sample("k", {}, image=image(0), further=[image(1), image(2)])
    assert int(sample.image_at(2)[0, 0, 0]) == 2 and int(sample.image_at(2)[0, 0, 0]) == 2 and decoded == [2]
    assert int(sample.image_at(0)[0, 0, 0]) == 0 and decoded == [2, 0]
    assert [int(one[0, 0, 0]) for one in sample.images] == [0, 1, 2] and decoded == [2, 0, 1]
    with pytest.raises(IndexError, match="Sample k has no image 3; it has 3"):
        sample.image_at(3)
