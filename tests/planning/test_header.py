"""Plans in the headers of recipes: made by a command, and not of another recipe than the one below them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megaunigame.errors import ConfigError
from megaunigame.planning.header import Header
from tests.multi_process.launcher import REPOSITORY, run_script

RECIPES = sorted((REPOSITORY / "launch" / "recipes").glob("*.yaml"))
REAL = [path for path in RECIPES if not path.stem.startswith("tiny_")]
CHEAP = "janus_pro_7b_sft"
"""Planned again in a test, in 20 seconds; the others by `python launch/plan_headers.py launch/recipes/*b_*.yaml --check`."""
FULL = "# plan --nodes 3 --gpu h200-141g model.train=full 'objectives.generation={pixel_rows: 2, stream: scenes}'\n"


@pytest.fixture(autouse=True)
def from_the_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)  # recipes name ds_configs relative to it


def recipe(folder: Path, *lines: str, block: bool = True) -> Path:
    """A tiny recipe with such lines in its block."""
    text = (REPOSITORY / "launch/recipes/tiny_emu3_sft.yaml").read_text().replace("zero3_cpu.json", "zero2.json")
    comments = "# Planned, not measured, by `old`:\n{}#   old\n# end of the plans, inputs 0\n".format("".join(lines))
    path = folder / "recipe.yaml"
    path.write_text(text.replace("name:", f"{comments}name:", 1) if block else text)
    return path


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_plans_are_those_of_the_recipe_below_them(path):
    """Their inputs are; whether the planner says the same today, only planning tells."""
    header = Header(path)
    assert header.inputs == header.planned_inputs(), f"Type: python launch/plan_headers.py {path.relative_to(REPOSITORY)}"
    for part in ("GiB of one GPU: weights ", "MFU ", " a step (computation "):
        assert header.block.count(part) == len(header.configurations), part
    verdicts = re.findall(r"trained; (?:fits|does not fit): \S+ GiB of", header.block.replace("\n#     ", " "))
    assert len(verdicts) == len(header.configurations)


def planned(recipe: Path) -> set[str]:
    """Each configuration of a header as a page of its family has it: `8 h100-80g | 27.96 GiB of 79 | 7.9 to 8.25`."""
    verdict = r"#   (\d+) x (\d+) (\S+), \S+ parameters trained; (fits|does not fit): (\S+) GiB of (\d+)"
    found = re.findall(verdict + r"(?:.|\n)*?#   (\S+ to \S+) s a step", Header(recipe).block.replace("\n#     ", " "))
    remark = {"fits": "", "does not fit": ": does not fit"}
    return {
        f"{int(nodes) * int(gpus)} {kind} | {size} GiB of {limit}{remark[fit]} | {seconds}"
        for nodes, gpus, kind, fit, size, limit, seconds in found
    }


def test_pages_of_families_say_what_the_headers_say():
    """A row of a table without a recipe belongs to the recipe of the row above it."""
    told: dict[str, set[str]] = {path.stem: set() for path in REAL}
    for page in (REPOSITORY / "docs" / "models").glob("*.md"):
        name = ""
        for recipe, row in re.findall(
            r"^\| (?:`(\w+)\.yaml` \(\w+\) )?\| (\d+ \S+ \| \S+ GiB of .*) \|$", page.read_text(), re.MULTILINE
        ):
            name = recipe or name
            told[name].add(row)
    assert told == {path.stem: planned(path) for path in REAL}


@pytest.mark.timeout(240)
def test_the_command_says_whether_plans_are_those_of_today():
    done = run_script("launch/plan_headers.py", f"launch/recipes/{CHEAP}.yaml", "--check")
    assert done.returncode == 0 and "0 of 1 headers changed" in done.stdout, done.stderr


def test_a_block_is_made_again_in_its_place(tmp_path):
    """With the lines of its configurations; what went in is told by a hash."""
    path = recipe(tmp_path, "# plan --nodes 1 --gpus-per-node 2\n", "# plan --nodes 2 --gpu b200-180g batch.accumulation=3\n")
    said: list[str] = []
    header = Header(path)
    assert header.inputs == "0" and [c.cluster.ranks for c in header.configurations] == [2, 16]
    assert header.configurations[1].recipe.batch.accumulation == 3
    text = header.planned(said.append)
    before, after = path.read_text().split("# Planned", 1)[0], path.read_text().split("# end of the plans, inputs 0\n")[1]
    assert text.startswith(before) and text.endswith(f"# end of the plans, inputs {header.planned_inputs()}\n{after}")
    assert "old" not in text and text.count("GiB of one GPU: weights ") == 2 and "1 x 2 h100-80g, " in text
    assert "2 x 8 b200-180g, " in text and len(said) == 2
    assert all(line.startswith("#") for line in text[len(before) : -len(after)].splitlines())
    path.write_text(text)
    again = Header(path)
    assert again.inputs == again.planned_inputs() and again.planned(said.append) == text


@pytest.mark.parametrize(
    "old, new",
    [
        ("rows: 8", "rows: 7"),
        ("train: full", "train: lora"),
        ("precision: fp32", "precision: bf16"),
        ("zero2.json", "zero3.json"),
        ("size: tiny", "size: 8b"),
        ("--nodes 3", "--nodes 2"),
        ("model.train=full", "model.train=lora"),
    ],
)
def test_the_hash_changes_with_what_goes_into_a_plan(tmp_path, old, new):
    path = recipe(tmp_path, FULL)
    before, text = Header(path).planned_inputs(), path.read_text()
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1))
    assert Header(path).planned_inputs() != before


def test_the_hash_does_not_change_with_anything_else(tmp_path):
    path = recipe(tmp_path, FULL)
    before, text = Header(path).planned_inputs(), path.read_text()
    for old, new in (("# UniGame", "# Uni"), ("lr: 1.0e-3", "lr: 2.0e-3"), ("steps: 60", "steps: 70"), ("seed: 0", "seed: 1")):
        text = text.replace(old, new)
    path.write_text(text)
    assert Header(path).planned_inputs() == before


def test_a_recipe_without_a_block_gets_one(tmp_path):
    header = Header(recipe(tmp_path, block=False))
    assert [c.line for c in header.configurations] == ["# plan --nodes 1"] and header.inputs is None
    text = header.planned(lambda _: None)
    assert re.search(r"^# end of the plans, inputs \w{12}\nname:", text, re.MULTILINE)


@pytest.mark.parametrize(
    "line, message",
    [
        ("# plan --nodes many\n", "`# plan --nodes many` is not what megaunigame plan takes"),
        ("# plan --gpu h100\n", "Unknown GPU 'h100'"),
        ("# plan 'model.train=full\n", "is not what megaunigame plan takes: No closing quotation"),
        ("# plan model.trian=full\n", "trian"),
        ("# plan model.size='\"\"'\n", "has no model.size"),
    ],
)
def test_lines_that_cannot_be_planned_are_refused(tmp_path, line, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Header(recipe(tmp_path, line))
