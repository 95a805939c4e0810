from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from megaunigame.errors import DataError
from megaunigame.tiny_world.scenes import contours, load_scenes, read_metas
from tests.data.shard_files import encoded, write_tar


def write_shard(path, samples: dict[str, dict[str, bytes]]) -> None:
    write_tar(path, [(f"{key}.{name}", data) for key, fields in samples.items() for name, data in fields.items()])


def fields(**left_out: bool) -> dict[str, bytes]:
    ids = np.zeros((8, 8), np.uint8)
    ids[2:5, 3:6] = 2
    whole = {
        "png": encoded(np.full((8, 8, 3), 255, np.uint8)),
        "json": json.dumps({"caption": "a red cube", "objects": []}).encode(),
        "depth.png": encoded(np.full((8, 8), 65535, np.uint16)),
        "seg.png": encoded(ids),
    }
    return {name: data for name, data in whole.items() if name.split(".")[0] not in left_out}


def test_every_kind_of_picture_is_read(tmp_path):
    write_shard(tmp_path / "a-000000.tar", {"one": fields(), "two": fields()})
    scenes = load_scenes(tmp_path, limit=1)
    assert len(scenes) == 1
    assert len(list(read_metas(tmp_path))) == 2
    index = torch.tensor([0])
    assert torch.equal(scenes.batch("rgb", index), torch.ones(1, 3, 8, 8))
    assert torch.equal(scenes.batch("depth", index), torch.ones(1, 3, 8, 8))
    regions = scenes.pictures["regions"][0]
    assert (regions[:, scenes.segmentation[0] == 0] == 0).all()
    assert (regions[:, scenes.segmentation[0] == 2].amax(0) == 255).all()
    assert all(stack.is_contiguous() for stack in scenes.pictures.values())


def test_contours_lie_on_borders_only():
    ids = torch.zeros(6, 6, dtype=torch.uint8)
    ids[:, 3:] = 1
    lines = contours(ids)
    assert (lines[:, :, 3] == 255).all()
    assert int((lines > 0).sum()) == 3 * 6


@pytest.mark.parametrize("missing, named", [("seg", "segmentation"), ("depth", "depth"), ("png", "rgb")])
def test_a_scene_without_a_picture_is_named(tmp_path, missing, named):
    write_shard(tmp_path / "a-000000.tar", {"one": fields(**{missing: True})})
    with pytest.raises(DataError, match=f"one.*{named}"):
        load_scenes(tmp_path)
