"""docs/security.md says the limits that the code has; recipes are read as it says."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from megaunigame.config import load_recipe
from megaunigame.errors import ConfigError
from megaunigame.settings import read

PAGE = Path(__file__).resolve().parents[2] / "docs" / "security.md"
ROW = re.compile(r"^\| .+ \| ([\d,]+)(?: \w+)? \| `([\w.]+)\.(\w+)` \|$", re.MULTILINE)
LIMITS = re.compile("^(MOST|LARGEST|LONGEST|DEEPEST|MAX_PIXELS|SILENCE|WINDOW|ATTEMPTS)")
ELSEWHERE = {"LARGEST_FILE", "LARGEST", "LARGEST_YAML"}
"""Of one number in a header; of files of the run itself; of one small file."""


def test_the_limits_on_the_page_are_those_of_the_code():
    rows = ROW.findall(PAGE.read_text(encoding="utf-8"))
    assert len(rows) >= 20
    for value, module, name in rows:
        assert getattr(importlib.import_module(module), name) == float(value.replace(",", "")), f"{module}.{name}"


def test_no_limit_is_missing_on_the_page():
    """Of the modules that have some there."""
    rows = {(module, name) for _, module, name in ROW.findall(PAGE.read_text(encoding="utf-8"))}
    for name in {module for module, _ in rows}:
        source = Path(importlib.import_module(name).__file__).read_text(encoding="utf-8")
        assigned = re.findall(r"^([A-Z_]+(?:, [A-Z_]+)*)(?:: \w+)? = ", source, re.MULTILINE)
        for constant in (one for names in assigned for one in names.split(", ")):
            assert not LIMITS.match(constant) or constant in ELSEWHERE or (name, constant) in rows, f"{name}.{constant}"


@pytest.mark.fault("a recipe with a tag that makes Python objects", does="refuses it; nothing runs", lost="nothing")
@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.mkdir [{}]", "!!python/name:os.system", "!!python/object/new:os.mkdir [{}]"]
)
def test_recipes_are_read_by_the_safe_loader(tmp_path, tag):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"output: {tag.format(tmp_path / 'ran')}\n")
    with pytest.raises(ConfigError, match=r"recipe\.yaml is not a legal YAML recipe"):
        load_recipe(str(recipe), [])
    recipe.write_text("output: here\n")
    with pytest.raises(ConfigError, match="is not a legal YAML recipe"):
        load_recipe(str(recipe), [f"output={tag.format(tmp_path / 'ran')}"])
    assert not (tmp_path / "ran").exists()


def test_resolvers_of_a_recipe(tmp_path, monkeypatch):
    """Those of OmegaConf alone: an environment variable is put in, and nothing runs code."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("output: ${oc.env:PLACE}/run\n")
    monkeypatch.setenv("PLACE", "there")
    assert read(str(recipe), [], "recipe", "x.yaml") == {"output": "there/run"}
    for odd in ("${oc.env:NOT_SET_ANYWHERE}", "${eval:1+1}", "${output}"):
        recipe.write_text(f"output: {odd}\n")
        with pytest.raises(ConfigError, match="is not a legal YAML recipe"):
            read(str(recipe), [], "recipe", "x.yaml")
    assert not OmegaConf.has_resolver("eval")
