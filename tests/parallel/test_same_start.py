"""Ranks that do not run the same program are told apart before anything is loaded."""

from __future__ import annotations

import re

import numpy
import pytest
import torch

from megaunigame.config import by_key, load_recipe
from megaunigame.errors import ConfigError
from megaunigame.parallel.same_start import check_same_start, code_hash, facts_of_process
from tests.worlds import on_ranks


def outcomes(*facts: dict[str, str]) -> list[str]:
    def check(world) -> str:
        try:
            check_same_start(world, facts[world.rank])
        except ConfigError as error:
            return str(error)
        return ""

    return on_ranks(len(facts), check)


def test_the_same_facts_are_no_error():
    assert outcomes(*[{"torch": "2.14", "seed": "5"}] * 3) == [""] * 3


@pytest.mark.fault("a node with another version of a package", does="ConfigError before loading", lost="nothing")
def test_every_difference_is_named_on_every_rank():
    usual = {"torch": "2.14", "seed": "5", "numpy": "2"}
    first, *others = outcomes(usual, usual, {**usual, "torch": "2.9"}, {"torch": "2.14", "seed": "6", "numpy": "2"})
    assert others == [first] * 3
    assert re.search(
        r"torch is 2\.14 on rank 0 \(\S+\), 2\.9 on rank 2 \(\S+\); seed is 5 on rank 0 \(\S+\), 6 on rank 3", first
    )
    assert "numpy" not in first


def test_a_setting_that_one_rank_does_not_have_is_a_difference():
    first, _ = outcomes({"a": "1", "b": "2"}, {"a": "1"})
    assert "b is 2 on rank 0" in first and "not set on rank 1" in first


def test_facts_of_this_process():
    recipe = load_recipe("launch/recipes/tiny_sft.yaml", ["optimizer.lr=3e-5"])
    facts = facts_of_process(by_key(recipe))
    assert facts["torch"] == torch.__version__ and facts["numpy"] == numpy.__version__ and facts["deepspeed"]
    assert facts["optimizer.lr"] == "3e-05" and facts["engine.lost_seconds"] == "30.0"
    other = by_key(load_recipe("launch/recipes/tiny_sft.yaml", ["optimizer.lr=4e-5"]))
    assert {key for key in other if other[key] != facts[key]} == {"optimizer.lr"}


def test_the_hash_of_code_sees_every_byte_and_every_name(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.py").write_text("one")
    (tmp_path / "notes.txt").write_text("not code")
    first = code_hash(tmp_path)
    (tmp_path / "notes.txt").write_text("other")
    assert code_hash(tmp_path) == first
    (tmp_path / "a" / "x.py").write_text("onf")
    second = code_hash(tmp_path)
    (tmp_path / "a" / "x.py").rename(tmp_path / "a" / "y.py")
    assert len({first, second, code_hash(tmp_path)}) == 3
