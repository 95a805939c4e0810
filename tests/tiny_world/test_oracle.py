from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from megaunigame.errors import ModelError
from megaunigame.judges.scenes import CELL, COLORS, SHAPES, Oracle, caption_relations, read_objects, score, true_objects
from megaunigame.tiny_world.labels import cell_labels
from megaunigame.tiny_world.loop import LoopSettings, train
from megaunigame.tiny_world.oracle_training import OracleStage
from tests.tiny_world.toy import toy_scenes

META = {
    "objects": [{"color": "red", "shape": "cube", "x": 0.2, "y": 0.5}, {"color": "blue", "shape": "sphere", "x": 0.7, "y": 0.4}]
}


def test_perfect_maps_give_perfect_scores():
    scenes = toy_scenes(30)
    labels = cell_labels(scenes, CELL)
    color = F.one_hot(labels.color, 1 + len(COLORS)).permute(0, 3, 1, 2).float()
    shape = F.one_hot(labels.shape.clamp(min=0), len(SHAPES)).permute(0, 3, 1, 2).float().clamp(min=1e-3).log()
    found, truth = read_objects(color, shape), [true_objects(meta) for meta in scenes.metas]
    visible = [
        (seen, real, ids)
        for seen, real, ids in zip(found, truth, scenes.segmentation, strict=True)
        if all((ids == number).sum() >= 60 for number in range(1, len(real) + 1))
    ]
    assert len(visible) > 15
    scores = score([seen for seen, _, _ in visible], [real for _, real, _ in visible])
    assert (scores.object_accuracy, scores.color_present, scores.all_exact, scores.extra_objects) == (1, 1, 1, 0)
    alone = [(seen, real) for seen, real, _ in visible if len(real) == 1]
    for seen, real in alone:
        ((_, found_at),) = seen.values()
        ((_, true_at),) = real.values()
        assert math.dist(found_at, true_at) < 0.05


def test_scores_count_wrong_missing_and_extra_objects():
    truth = [true_objects(META)]
    wrong_shape = [{"red": ("sphere", (0.2, 0.5)), "blue": ("sphere", (0.7, 0.4))}]
    scores = score(wrong_shape, truth, [[("red", "blue")]])
    assert (scores.object_accuracy, scores.color_present, scores.all_exact, scores.relation) == (0.5, 1.0, 0.0, 1.0)
    missing = [{"blue": ("sphere", (0.7, 0.4)), "green": ("cone", (0.1, 0.1))}]
    scores = score(missing, truth, [[("red", "blue")]])
    assert (scores.object_accuracy, scores.color_present, scores.extra_objects, scores.relation) == (0.5, 0.5, 1.0, 0.0)
    assert math.isnan(score(truth, truth).relation)
    swapped = score(truth, truth, [[("blue", "red")]])
    assert (swapped.all_exact, swapped.relation) == (1.0, 0.0)


def test_relations_of_a_caption():
    assert caption_relations("a red cube left of a blue sphere left of a cyan cone") == [("red", "blue"), ("blue", "cyan")]
    assert caption_relations("a red cube right of a blue sphere") == [("blue", "red")]
    assert caption_relations("a red cube") == []


def test_training_learns_and_the_file_is_small(tmp_path):
    scenes = toy_scenes(60)
    torch.manual_seed(0)
    oracle = Oracle()
    stage = OracleStage(oracle, scenes, scenes.batch("rgb", torch.arange(20)))
    first = stage.loss(0, torch.Generator().manual_seed(0))[0].item()
    train(stage, LoopSettings(steps=25, learning_rate=3e-3, log_every=25), tmp_path)
    last = stage.loss(0, torch.Generator().manual_seed(0))[0].item()
    assert last < 0.6 * first
    oracle.save(tmp_path / "oracle.safetensors")
    assert (tmp_path / "oracle.safetensors").stat().st_size < 500_000
    pictures = scenes.batch("rgb", torch.arange(8))
    reloaded = Oracle.load(tmp_path / "oracle.safetensors")
    with torch.no_grad():
        assert torch.allclose(reloaded(pictures)[0], oracle(pictures)[0], atol=0.05)
    assert len(reloaded.objects(pictures)) == 8


def test_what_is_not_an_oracle_is_refused(tmp_path):
    with pytest.raises(ModelError, match="--stage oracle"):
        Oracle.load(tmp_path / "missing.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="does not hold an oracle"):
        Oracle.load(tmp_path / "other.safetensors")
