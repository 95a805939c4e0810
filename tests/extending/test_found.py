"""A file that is put into its folder is found by its name; nothing else is touched."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megaunigame.adversary.base import Adversary
from megaunigame.config import MixedConfig, StreamConfig
from megaunigame.data.decode import decode_sample
from megaunigame.data.sources.base import Backend
from megaunigame.data.sources.opening import open_stream
from megaunigame.errors import ConfigError, DataError
from megaunigame.evaluation.suites.base import Suite
from megaunigame.models.base import UnifiedModel
from megaunigame.objectives.base import Objective
from megaunigame.objectives.unimrg import UniMRG
from megaunigame.objectives.unimrg.settings import Settings
from megaunigame.registry import available, find
from megaunigame.representations.base import Representation
from megaunigame.settings import fill
from tests.data.shard_files import sample_fields
from tests.evaluation.fakes import FakeModel, bright_dark, write_tars
from tests.extending.conftest import ROOMS, write_files
from tests.worlds import on_ranks

NEW = [
    ("adversary", "universal", Adversary),
    ("data.sources", "pictures", Backend),
    ("evaluation.suites", "perplexity", Suite),
    ("models", "patches", UnifiedModel),
    ("objectives", "captioning", Objective),
    ("objectives", "squared", Objective),
    ("representations", "mirror", Representation),
    ("representations", "normals", Representation),
]


@pytest.mark.parametrize(("room", "name", "base"), NEW)
def test_a_new_file_is_found(examples, room, name, base):
    assert issubclass(find(room, name, base), base) and name in available(room, base)


def test_every_example_is_tried(examples):
    found = {(room, path.stem) for room in ROOMS for path in examples.joinpath(*room.split(".")).glob("[!_]*")}
    assert found == {(room, name) for room, name, _ in NEW}


def test_settings_of_a_new_objective_are_filled(examples):
    kind = find("objectives", "captioning", Objective)
    assert kind(kind.Config(rows=2)).rows()[0].count == 2
    with pytest.raises(ConfigError, match="objectives.captioning.rows must be at least 0; got -1"):
        fill(kind.Config, {"rows": -1}, "objectives.captioning")
    with pytest.raises(ConfigError, match="Did you mean 'rows'"):
        fill(kind.Config, {"row": 1}, "objectives.captioning")


def test_a_new_source_can_be_mixed(examples, tmp_path):
    for name in "ab":
        write_files(tmp_path / name, {f"{name}{number}": sample_fields(number) for number in (0, 1)})
    mix = {name: MixedConfig(str(tmp_path / name)) for name in "ab"}
    source = open_stream("train", StreamConfig(mix=mix, backend="pictures"), 0).source
    assert {source.find(position, 0).key for position in range(4)} == {"a0", "a1", "b0", "b1"}
    assert set(source.find(0, 0).read()) == {"json", "png", "depth.png", "seg.png"}
    with pytest.raises(ConfigError, match="data.train.shards=.* is not a folder with files NAME.json"):
        open_stream("train", StreamConfig(str(tmp_path), backend="pictures"), 0)
    with pytest.raises(ConfigError, match="data.train.where: backend=pictures has no filters"):
        open_stream("train", StreamConfig(str(tmp_path / "a"), where=["has depth.png"], backend="pictures"), 0)


def test_a_new_suite_finds_the_same_on_any_number_of_ranks(examples, tmp_path):
    shards = write_tars(tmp_path / "shards", bright_dark(5))
    kind = find("evaluation.suites", "perplexity", Suite)
    suite = kind(fill(kind.Config, {"shards": shards, "batch": 2}, "evaluation.suites.perplexity"))

    def run(world):
        with torch.no_grad():
            return suite.run(FakeModel().eval(), world, tmp_path)

    (alone,) = on_ranks(1, run)
    assert on_ranks(2, run) == [alone, alone] and alone["tables"][0]["rows"][0][1] > 5


def test_a_sample_without_a_new_target_says_what_to_do(examples):
    objective = UniMRG(fill(Settings, {"rows": {"normals": 1}, "own_prompts": {"normals": ["draw"]}}, "objectives.unimrg"))
    fields = {name: data for name, data in sample_fields(1).items() if name in ("json", "png")}
    with pytest.raises(DataError, match=r"has no normals.png, which normals rows need. Pack the shards with it\.") as error:
        objective.row(objective.rows()[0], decode_sample("k", fields), np.random.default_rng(0))
    assert "annotate" not in str(error.value)
