"""A file dropped into its folder is found by name; a wrong name is answered with the nearest right one."""

from __future__ import annotations

import importlib
import sys

import pytest

from megaunigame.config import MixedConfig, StreamConfig
from megaunigame.data.sources.base import Backend
from megaunigame.data.sources.opening import open_stream
from megaunigame.errors import ConfigError
from megaunigame.models.base import UnifiedModel
from megaunigame.objectives.base import Objective
from megaunigame.registry import available, find
from megaunigame.representations.base import Representation

NEW_FILES = {
    "objectives": (
        Objective,
        """
from dataclasses import dataclass
from megaunigame.objectives.base import Objective
from megaunigame.step.requests import UNDERSTAND, RowRequest
from megaunigame.step.rows import UnderstandRow

class Captioning(Objective):
    @dataclass
    class Config:
        rows: int = 3

    def rows(self):
        return [RowRequest("captioning", UNDERSTAND, "train", self.config.rows)]

    def row(self, request, sample, rng):
        return UnderstandRow([sample.image], [("describe", sample.meta["caption"])])
""",
    ),
    "representations": (
        Representation,
        """
from megaunigame.representations.base import Representation

class Mirror(Representation):
    def picture(self, sample):
        return None if sample.image is None else sample.image.flip(-1)
""",
    ),
    "data.sources": (
        Backend,
        """
from megaunigame.data.sources.base import Backend, SampleRef

class Numbers(Backend):
    exact = True

    def __init__(self, location, seed):
        self.location, self.seed, self.identity = location, seed, {}

    @classmethod
    def open(cls, key, config, seed):
        return cls(config.shards, seed)

    def find(self, position, attempt):
        return SampleRef(f"{self.location}{position}", "", dict, lambda: None)
""",
    ),
    "models": (
        UnifiedModel,
        """
from megaunigame.models.janus import Janus

class Chronus(Janus):
    pass
""",
    ),
}


@pytest.mark.parametrize("room", NEW_FILES)
def test_a_dropped_file_is_found(room, tmp_path, monkeypatch):
    base, source = NEW_FILES[room]
    (tmp_path / "newcomer.py").write_text(source)
    package = importlib.import_module(f"megaunigame.{room}")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    try:
        kind = find(room, "newcomer", base)
        assert issubclass(kind, base) and "newcomer" in available(room, base)
        if room == "objectives":
            assert kind(kind.Config(rows=2)).rows()[0].count == 2
        if room == "data.sources":
            mixed = StreamConfig(mix={"a": MixedConfig("a"), "b": MixedConfig("b")}, backend="newcomer")
            source = open_stream("train", mixed, 0).source
            assert {source.find(position, 0).key for position in range(4)} == {"a0", "a1", "b0", "b1"}
    finally:
        sys.modules.pop(f"megaunigame.{room}.newcomer", None)


def test_wrong_names_are_answered():
    with pytest.raises(ConfigError, match=r"'understandin'.*Did you mean 'understanding'.*generation"):
        find("objectives", "understandin", Objective)
    families = ", ".join(available("models", UnifiedModel))
    with pytest.raises(ConfigError, match=rf"'emu9'.*Did you mean 'emu3'.*Legal: {families}\."):
        find("models", "emu9", UnifiedModel)


def test_a_file_without_its_class_is_refused(tmp_path, monkeypatch):
    (tmp_path / "empty.py").write_text("x = 1\n")
    package = importlib.import_module("megaunigame.objectives")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    with pytest.raises(ConfigError, match="exactly one Objective; found 0"):
        find("objectives", "empty", Objective)
