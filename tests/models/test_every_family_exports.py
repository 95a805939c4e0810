"""Exported folders of every family: they hold all that the family needs, and their cards say how to use them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from megaunigame.checkpoint import export
from megaunigame.errors import ModelError
from megaunigame.models.base import UnifiedModel
from megaunigame.registry import find
from tests.models.shared import FAMILIES, outputs

SEPARATE = [name for name in FAMILIES if find("models", name, UnifiedModel).frozen_folder]
"""Families whose frozen tokenizer has a folder inside a model folder."""


class Untrained:
    """The weights of a run that has changed none."""

    def __init__(self, family, run):
        self.weights = family.weights(str(run.model_path))

    def __getattr__(self, name):
        return getattr(self.weights, name)

    def check(self):
        pass


def settings_of(folder):
    """The small files that say what the weights are."""
    files = {file.relative_to(folder) for pattern in ("*.json", "*.jinja") for file in folder.rglob(pattern)}
    return {file for file in files if not file.name.endswith(".index.json")}


@pytest.fixture
def exported(monkeypatch):
    """`exported(family, start, out)`: `start` as launch/export.py writes it."""
    monkeypatch.setattr(export, "weights_of_run", Untrained)

    def write(family, start, out):
        export.export_model(family, SimpleNamespace(model_path=start), out, torch.float32)
        return out

    return write


def test_an_export_holds_what_its_family_needs(tiny, exported, tmp_path, picture):
    """Alone: the folder that it came from is gone. A frozen tokenizer is published with a separate config.json."""
    family, start = tiny.family, shutil.copytree(tiny.path, tmp_path / "start")
    inside = Path(family.frozen_folder) / "config.json"
    if not (start / inside).is_file():
        (start / inside).write_text('{"_class_name": "of the release"}')
    frozen = (start / inside).read_text()
    settings, expected = settings_of(start), outputs(family.load(start, max_length=160), picture)
    out = exported(family, start, tmp_path / "out")
    shutil.rmtree(start)
    assert settings <= settings_of(out)
    assert torch.equal(outputs(family.load(out, max_length=160), picture), expected)
    again = exported(family, out, tmp_path / "again")
    assert settings_of(again) == settings_of(out)
    if family.frozen_folder:
        assert (again / inside).read_text() == frozen


def test_the_card_says_how_to_use_the_folder(tiny):
    page = tiny.family.usage("exported/model", str(tiny.path))
    assert '"exported/model"' in page and "```python" in page
    assert "FOLDER" not in page and "SIDE" not in page and "SOURCE" not in page


@pytest.mark.parametrize("tiny", SEPARATE, indirect=True)
def test_a_frozen_folder_without_weights_says_where_they_are_published(tiny, tmp_path):
    family, folder = tiny.family, shutil.copytree(tiny.path, tmp_path / "model")
    for file in (folder / family.frozen_folder).glob("*.safetensors"):
        file.unlink()
    inside = folder / family.frozen_folder
    source = r"published alone: copy \S+ of \w+/\S+ to"
    with pytest.raises(ModelError, match=rf"No weights in {inside}\. .*{source} {inside}/\w+\.\w+\."):
        family.weights(str(folder))


CARRIED = ("generation_config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json")


def test_no_export_names_code_of_others(tiny, exported, tmp_path):
    """The names of code in a folder stay there, and so does the code."""
    family, start = tiny.family, shutil.copytree(tiny.path, tmp_path / "start")
    for name in CARRIED:
        if not (start / name).is_file():
            (start / name).write_text("{}")
    named = [file for file in start.rglob("*config.json") if family.name != "openuni" or file != start / "config.json"]
    for file in named:  # of a type, so that nothing else is refused in it
        file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": {"AutoConfig": "other/repo--x.C"}}))
    (start / "x.py").write_text("raise SystemExit")
    out = exported(family, start, tmp_path / "out")
    texts = [file.read_text() for file in out.rglob("*.json")]
    assert len(named) >= 4 and texts and not any("auto_map" in text for text in texts) and not list(out.rglob("*.py"))


def test_no_export_follows_a_link_out_of_the_model_folder(tiny, exported, tmp_path):
    """Not even where the file is read and written again: its keys would be published."""
    family, secret = tiny.family, tmp_path / "secret"
    for name in sorted(file for file in settings_of(tiny.path)):
        start = shutil.copytree(tiny.path, tmp_path / "of" / name / "start")
        secret.write_bytes((start / name).read_bytes())
        (start / name).unlink()
        (start / name).symlink_to(secret)
        with pytest.raises(ModelError, match=f"{name} is a link to .*secret, outside of its model folder"):
            exported(family, start, tmp_path / "of" / name / "out")
