"""Target pictures: ranges, shapes, and colours that cannot state an answer."""

from __future__ import annotations

import numpy as np
import torch

from megaunigame.data.decode import Sample
from megaunigame.registry import available, find
from megaunigame.representations.base import Representation
from megaunigame.representations.segmentation import region_colours


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


def test_near_is_white():
    depth = find("representations", "depth", Representation)().picture(sample())
    assert depth[:, 0, 0].tolist() == [0, 0, 0] and depth[:, -1, -1].tolist() == [255, 255, 255]


def test_region_colours_differ_and_depend_on_the_key_alone():
    colours = region_colours("a")
    assert (colours[0] == 0).all()
    near = colours[1:9].astype(int)
    gaps = np.abs(near[:, None] - near[None]).sum(-1) + 1000 * np.eye(8, dtype=int)
    assert gaps.min() > 20, "two of eight instances would look alike"
    assert (colours == region_colours("a")).all()
    first_hues = {tuple(region_colours(str(k))[1]) for k in range(50)}
    assert len(first_hues) > 40, "the first instance must not always have the same colour"
