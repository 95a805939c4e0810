"""A wrong name is answered with the nearest right one. New files are found: tests/extending/."""

from __future__ import annotations

import importlib
import sys

import pytest

from megaunigame.errors import ConfigError
from megaunigame.models.base import UnifiedModel
from megaunigame.objectives.base import Objective
from megaunigame.registry import available, find


def test_wrong_names_are_answered():
    with pytest.raises(ConfigError, match=r"'understandin'.*Did you mean 'understanding'.*generation"):
        find("objectives", "understandin", Objective)
    families = ", ".join(available("models", UnifiedModel))
    with pytest.raises(ConfigError, match=rf"'emu9'.*Did you mean 'emu3'.*Legal: {families}\."):
        find("models", "emu9", UnifiedModel)


@pytest.fixture
def more(tmp_path, monkeypatch):
    """A folder in which objectives are found too."""
    package = importlib.import_module("megaunigame.objectives")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    return tmp_path


def test_a_file_without_its_class_is_refused(more):
    (more / "empty.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match="exactly one Objective; found 0"):
        find("objectives", "empty", Objective)


def test_a_class_of_a_longer_name_is_not_taken_for_its_own(more):
    source = "from megaunigame.objectives.understanding import Understanding\n\nclass Understand(Understanding):\n    pass\n"
    (more / "understand.py").write_text(source)
    try:
        assert find("objectives", "understand", Objective).__name__ == "Understand"
    finally:
        sys.modules.pop("megaunigame.objectives.understand", None)
