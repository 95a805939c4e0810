"""Sides of pictures in processor_config.json."""

from __future__ import annotations

import json

import pytest

from megaunigame.errors import ModelError
from megaunigame.models.text.picture_sides import read_sides


def written(folder, **settings):
    (folder / "processor_config.json").write_text(json.dumps(settings))
    return folder


def test_a_side_that_is_not_given_is_another_one(tmp_path):
    assert read_sides(tmp_path, 4, 16) == (16, 16)
    assert read_sides(written(tmp_path, image_size=24), 4, 16) == (24, 24)
    assert read_sides(written(tmp_path, source_size=8), 4, 16) == (16, 8)
    assert read_sides(written(tmp_path, image_size=12, source_size=20), 4, 16) == (12, 20)


@pytest.mark.parametrize("side", [18, 0, -8, 4, 8.0, True, "8", None])
@pytest.mark.parametrize("name", ["image_size", "source_size"])
def test_a_side_is_a_whole_number_of_codes_and_two_at_least(tmp_path, name, side):
    with pytest.raises(ModelError, match=rf"^{name}={side!r} \(in .*_config.json\) must be a multiple of 4, .* and 8 or more"):
        read_sides(written(tmp_path, **{"image_size": 16, "source_size": 16, name: side}), 4, 16)
