"""What a recipe asks of a rank, resolved without a model."""

from __future__ import annotations

import re

import pytest

from megaunigame.config import ModelConfig
from megaunigame.engine.memory_plan import GroupSize
from megaunigame.errors import ConfigError
from megaunigame.models.emu3.model import Emu3
from megaunigame.planning.plan import _notes
from megaunigame.planning.rehearsal import Rehearsal, Shape
from megaunigame.planning.states import COPIES, SAVED, saved, states
from megaunigame.planning.workload import planned_model, shape_of, workload
from tests.planning.plans import REPOSITORY, tiny, tiny_recipe


@pytest.mark.parametrize(
    "weights, size, there, source",
    [
        ("random", "8b", True, "size 8b of emu3"),
        ("random", "", True, "the configuration in {folder}"),
        ("pretrained", "8b", True, "the configuration in {folder}; model.size=8b is not used, type model.weights=random .*"),
        ("pretrained", "", True, "the configuration in {folder}"),
        ("pretrained", "8b", False, "size 8b of emu3"),
    ],
)
def test_one_rule_for_the_shape(tmp_path, weights, size, there, source):
    path = str(tmp_path if there else tmp_path / "absent")
    model = planned_model(ModelConfig(family="emu3", path=path, weights=weights, size=size), Emu3)
    assert re.fullmatch(source.format(folder=re.escape(path)), shape_of(model)), shape_of(model)


def test_recipes_that_cannot_be_planned():
    with pytest.raises(ConfigError, match=r"model.path=absent.*model.size=NAME; the family 'emu3' has tiny, 8b"):
        tiny("tiny_emu3_sft", "model.path=absent", "model.size=''")
    with pytest.raises(ConfigError, match="batch.global_rows=50 is not a multiple of 48"):
        tiny("tiny_emu3_sft", "batch={global_rows: 50}", ranks=3)


SHAPE = Shape([GroupSize("lm", 1101, 1000)], [(1000, True), (101, False)], 0, {}, {})


@pytest.mark.parametrize(
    "ds_config, on_gpu, on_host, note",
    [
        ("zero2", {"weights": 2202, "gradients": 252, "optimizer": 756}, {}, ""),
        ("zero3_cpu", {"weights": 2 * (63 + 7), "gradients": 252, "optimizer": 756}, {}, ""),
        ("zero3_hpz", {"weights": 140, "gradients": 252, "optimizer": 756, COPIES: 2 * (125 + 13)}, {}, "hpZ"),
        ("zero3_offload", {}, {"weights": 140, "gradients": 252, "optimizer": 756}, "bytes between host and GPU"),
    ],
)
def test_bytes_of_a_rank(ds_config, on_gpu: dict[str, int], on_host: dict[str, int], note):
    path = f"engine.ds_config={REPOSITORY / f'ds_configs/{ds_config}.json'}"
    with workload(tiny_recipe("tiny_sft", path), 16) as work:
        gpu, host = states(work, SHAPE)
        notes = " ".join(_notes(work))
    gpu.pop("weights that stay whole")
    assert {name: size for name, size in gpu.items() if size} == on_gpu
    assert host == on_host
    assert note in notes and bool(note) == bool(notes)


@pytest.mark.parametrize(
    "settings, every, left_out",
    [
        (["every=4"], 4, ""),
        (["path=sampled"], 1, "token by token"),
        (["path=embedding"], 1, "attacks on replayed rows"),
        (["path=embedding", "hard_rows=0"], 1, ""),
        (["path=sampled", "attack_rows=0", "hard_rows=0"], 1, ""),
    ],
)
def test_what_a_game_does_not_rehearse_is_said(settings, every, left_out):
    with workload(tiny_recipe("tiny_unigame", *(f"objectives.unigame.{setting}" for setting in settings)), 2) as work:
        shape = Rehearsal(work, gradient_checkpointing=True, partitioned=False).shape()
    assert shape.rehearsed_every == every
    assert left_out in " ".join(shape.unplanned) and bool(left_out) == bool(shape.unplanned)


def test_the_average_of_the_weights_takes_four_bytes_more():
    path = f"engine.ds_config={REPOSITORY / 'ds_configs/zero3_cpu.json'}"
    with workload(tiny_recipe("tiny_sft", path, "schedule={epochs: 2}", "ema.decay=0.9"), 16) as work:
        assert states(work, SHAPE)[0]["optimizer"] == 16 * 63 and saved(work, SHAPE) == {SAVED: 16 * 63}
