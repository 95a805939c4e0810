"""The wheel: it has all a user needs under one name, and works from any folder."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.multi_process.launcher import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
TRIES = """
import sys
from pathlib import Path
import megaunigame

if __name__ == "__main__":  # the two workers import this file
    assert not {"torch", "data_prep"} & set(sys.modules)
    from megaunigame.config import load_recipe
    recipe = load_recipe("tiny_combined", [])
    needed = [recipe.engine.ds_config, recipe.model.path, recipe.objectives["unigame"]["clip"]["model"]]
    assert all(Path(path).exists() for path in needed), needed
    from megaunigame.shipped import data_prep
    sys.exit(data_prep("__main__").main(["scenes", "--out", "shards", "--count", "3", "--split", "val", "--workers", "2"]))
"""


@pytest.fixture(scope="module")
def site_packages(tmp_path_factory):
    """A folder as `pip install megaunigame` makes it, without the dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=REPOSITORY, check=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site-packages")
    return folder / "site-packages"


def test_one_top_level_name(site_packages):
    names = {entry.name for entry in site_packages.iterdir()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"megaunigame"}


def test_everything_that_a_user_needs_is_in_it(site_packages):
    inside = site_packages / "megaunigame"
    for folder, ending in (("launch/recipes", "yaml"), ("launch/sweeps", "yaml"), ("ds_configs", "json"), ("data_prep", "py")):
        ours = {file.relative_to(REPOSITORY / folder) for file in (REPOSITORY / folder).rglob(f"*.{ending}")}
        assert ours and ours == {file.relative_to(inside / folder) for file in (inside / folder).rglob(f"*.{ending}")}
    weights = REPOSITORY / "megaunigame/tiny_world/weights"
    for file in weights.rglob("*"):
        copy = inside / "tiny_world/weights" / file.relative_to(weights)
        assert copy.is_dir() if file.is_dir() else copy.stat().st_size == file.stat().st_size


def test_it_works_in_an_empty_folder(site_packages, tmp_path):
    """Only the wheel is on the path, and the dependencies of this environment; not this clone."""
    (tmp_path / "tries.py").write_text(TRIES)
    environment = {"PATH": "", "PYTHONPATH": str(site_packages), "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, tmp_path / "tries.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "shards" / "dataset.json").is_file()
    shutil.rmtree(tmp_path / "shards")


OLDER = {"pillow": "12.3"}
"""What `make test-extras` has: gradio takes no newer one."""


def test_lower_bounds_are_what_is_tested():
    """No older release is promised than the one that the tests run with: the first two numbers of a version agree."""
    lines = (REPOSITORY / "constraints.txt").read_text().lower().replace("_", "-").splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line)
    needs = [*PROJECT["dependencies"], *(need for extra in PROJECT["optional-dependencies"].values() for need in extra)]
    bounds = [re.fullmatch(r"([\w.-]+)(?:\[\w+\])?>=([\d.]+)", need.lower().replace("_", "-")) for need in needs]
    assert all(bounds), needs
    for name, low in (bound.groups() for bound in bounds):
        if name in tested:
            runs = OLDER.get(name, tested[name])
            assert runs.split(".")[:2] == low.split(".")[:2], f"{name}: {low} in pyproject.toml, {runs} tested"
    assert sum(name in tested for name, _ in (bound.groups() for bound in bounds)) > 20


def test_the_command_is_installed(site_packages):
    (entry,) = site_packages.glob("*.dist-info/entry_points.txt")
    assert "megaunigame = megaunigame.command_line:main" in entry.read_text()
    assert Path(site_packages / "megaunigame" / "command_line.py").is_file()
