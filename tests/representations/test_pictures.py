"""Target pictures: ranges, shapes, and colors that cannot state an answer."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from megaunigame.data.decode import Sample
from megaunigame.errors import ConfigError
from megaunigame.registry import available, find
from megaunigame.representations.base import Representation
from megaunigame.representations.segmentation import region_colors


def sample(key: str = "a") -> Sample:
    depth = torch.linspace(0, 65535, 12).round().to(torch.int32).reshape(3, 4)
    ids = torch.arange(12, dtype=torch.uint8).reshape(3, 4)
    return Sample(key=key, meta={}, image=torch.zeros(3, 3, 4, dtype=torch.uint8), depth=depth, segmentation=ids)


def test_every_representation_gives_a_picture_or_none():
    empty = Sample(key="a", meta={}, image=None, depth=None, segmentation=None)
    for name in available("representations", Representation):
        representation = find("representations", name, Representation)()
        picture = representation.picture(sample())
        assert picture.shape == (3, 3, 4) and picture.dtype == torch.uint8
        assert representation.picture(empty) is None
        assert representation.agreement(picture, picture) == 1.0


def test_near_is_white():
    depth = find("representations", "depth", Representation)().picture(sample())
    assert depth[:, 0, 0].tolist() == [0, 0, 0] and depth[:, -1, -1].tolist() == [255, 255, 255]


def test_depth_keeps_the_high_byte():
    levels = torch.tensor([[0, 1, 100, 255]], dtype=torch.int32)
    shown = find("representations", "depth", Representation)().picture(
        Sample("a", {}, depth=levels * 257 + 5 * (levels == 100))
    )
    assert shown[0].tolist() == levels.tolist()


def test_region_colors_differ_and_depend_on_the_key_alone():
    colors = region_colors("a")
    assert (colors[0] == 0).all()
    near = colors[1:9].astype(int)
    gaps = np.abs(near[:, None] - near[None]).sum(-1) + 1000 * np.eye(8, dtype=int)
    assert gaps.min() > 20, "two of eight instances would look alike"
    assert (colors == region_colors("a")).all()
    first_hues = {tuple(region_colors(str(k))[1]) for k in range(50)}
    assert len(first_hues) > 40, "the first instance must not always have the same color"


def square(ids: int, size: int = 12) -> torch.Tensor:
    """A square of `ids`, with a smaller one of the next id in its corner."""
    area = torch.zeros(size, size, dtype=torch.uint8)
    area[2:10, 2:10] = ids
    area[7:11, 7:11] = ids + 1
    return area


def test_contours_are_the_maximum_of_the_edges_of_every_mask():
    segmentation = find("representations", "segmentation", Representation)("contours")
    ids = square(4)
    drawn = segmentation.picture(Sample("a", {}, segmentation=ids))
    edges = [cv2.Canny((ids == i).numpy().astype(np.uint8) * 255, 100, 200) for i in (4, 5)]
    assert np.array_equal(drawn[0].numpy(), np.maximum(*edges)) and drawn[0].any() and (drawn[0] == drawn[2]).all()
    nothing = segmentation.picture(Sample("a", {}, segmentation=torch.zeros(8, 8, dtype=torch.uint8)))
    assert nothing.shape == (3, 8, 8) and not nothing.any(), "no masks: a black picture"


@pytest.mark.parametrize(("channel", "seen"), [(0, True), (2, False)], ids=["red", "blue"])
def test_edges_are_those_of_the_grey_of_an_eye(channel, seen):
    """A red of 200 is 60 of grey, a blue 23: too little for an edge."""
    image = torch.zeros(3, 12, 12, dtype=torch.uint8)
    image[channel, :, 6:] = 200
    assert find("representations", "edges", Representation)().picture(Sample("a", {}, image=image)).any() == seen


def test_edges_follow_the_image():
    image = (square(1) > 0).to(torch.uint8).expand(3, -1, -1) * 200
    drawn = find("representations", "edges", Representation)().picture(Sample("a", {}, image=image))
    assert set(drawn.unique().tolist()) == {0, 255} and not drawn[:, :1].any() and not drawn[:, 5, 5].any()


def test_agreement_of_regions_looks_at_the_area_and_not_at_the_colors():
    segmentation = find("representations", "segmentation", Representation)()
    one, other = (segmentation.picture(Sample(key, {}, segmentation=square(1))) for key in "ab")
    assert not torch.equal(one, other) and segmentation.agreement(one, other) == 1.0
    assert segmentation.agreement(torch.zeros_like(one), one) == 0.0
    half = one.clone()
    half[:, 6:] = 0
    assert 0.3 < segmentation.agreement(half, one) < 0.6
    assert segmentation.agreement(torch.zeros_like(one), torch.zeros_like(one)) == 1.0


def test_unknown_renderings_are_refused():
    with pytest.raises(ConfigError, match="no rendering 'outline'. Legal: regions, contours"):
        find("representations", "segmentation", Representation)("outline")
