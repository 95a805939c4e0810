"""A wrong name is answered with the nearest right one. New files are found: tests/extending/."""

from __future__ import annotations

import importlib
import sys

import pytest

from megaunigame import registry
from megaunigame.config import load_recipe
from megaunigame.errors import ConfigError
from megaunigame.evaluation.suites.base import Suite
from megaunigame.models.base import UnifiedModel
from megaunigame.objectives.base import Objective
from megaunigame.registry import available, find, use_plugins
from megaunigame.representations.base import Representation


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


ONE = """
from megaunigame.objectives.understanding import Understanding

class Mine(Understanding):
    pass
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that Python looks into. What plugins a test has used is forgotten after it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    registry._plugins.clear()
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_plugin_of_one_file_is_named_as_the_file(folder):
    (folder / "odd_plugin.py").write_text(ONE)
    use_plugins(["odd_plugin"])
    assert find("objectives", "odd_plugin", Objective).__name__ == "Mine"
    assert "odd_plugin" in available("objectives", Objective) and "odd_plugin" not in available("models", UnifiedModel)
    use_plugins([])
    assert find("objectives", "odd_plugin", Objective), "the next recipe of this process does not take it away"


def test_a_plugin_of_folders_has_them_as_ours(folder):
    suites = folder / "odd_package" / "evaluation" / "suites"
    suites.mkdir(parents=True)
    (folder / "odd_package" / "objectives").mkdir()
    (folder / "odd_package" / "objectives" / "mine.py").write_text(ONE)
    source = ONE.replace("objectives.understanding import Understanding", "evaluation.suites.questions import Questions")
    (suites / "scores.py").write_text(source.replace("Mine(Understanding)", "Scores(Questions)"))
    use_plugins(["odd_package"])
    assert find("objectives", "mine", Objective).__name__ == "Mine"
    assert find("evaluation.suites", "scores", Suite).__name__ == "Scores"


def test_a_name_of_ours_is_not_replaced_silently(folder):
    (folder / "understanding.py").write_text(ONE)
    use_plugins(["understanding"])
    with pytest.raises(ConfigError, match="defined twice, by megaunigame.objectives.understanding and by understanding"):
        find("objectives", "understanding", Objective)


def test_a_plugin_of_one_file_may_have_the_name_of_a_module_where_it_defines_nothing(folder):
    (folder / "depth.py").write_text(ONE)
    use_plugins(["depth"])
    assert find("representations", "depth", Representation).__module__ == "megaunigame.representations.depth"
    assert find("objectives", "depth", Objective).__name__ == "Mine"


def test_a_plugin_that_is_not_there(folder):
    with pytest.raises(ConfigError, match="plugins: no module 'nowhere'.*PYTHONPATH=."):
        use_plugins(["nowhere"])
    (folder / "broken_plugin.py").write_text("import not_installed_here\n")
    with pytest.raises(ModuleNotFoundError, match="not_installed_here"):
        use_plugins(["broken_plugin"])


def test_a_recipe_names_its_plugins(folder):
    (folder / "odd_plugin.py").write_text(ONE)
    assert "odd_plugin" not in available("objectives", Objective)
    load_recipe("tiny_sft", ["plugins=[odd_plugin]"])
    assert "odd_plugin" in available("objectives", Objective)
