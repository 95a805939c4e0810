"""What `make test-gpu` is made of, run on the CPU: comparisons, launches, commands of the profiles, the page."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from megaunigame.config import load_recipe
from megaunigame.errors import CapacityError, ConfigError
from megaunigame.launching import run_to_exit
from megaunigame.models.base import UnifiedModel
from megaunigame.objectives.building import build_objectives, build_plan
from megaunigame.registry import available, find
from tests.gpu.launches import CASES, LAST, run_whole_and_in_parts, write_world
from tests.gpu.measure import does_not_fit
from tests.gpu.parity import Distance, apart, pass_results
from tests.gpu.shapes import SHAPES
from tests.gpu.write_page import PAGE, page, read_results
from tests.multi_process.launcher import REPOSITORY
from tests.multi_process.tiny_run import write_family, write_recipe

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", available("models", UnifiedModel))
def test_the_comparison_is_zero_for_the_same_and_sees_the_precision(family, tmp_path):
    folder = write_family(tmp_path / family, family)
    exact, again = (pass_results(family, folder, CPU, torch.float32) for _ in range(2))
    rounded = pass_results(family, folder, CPU, torch.bfloat16)
    assert set(exact) == {"understand", "generate"}
    for name, result in exact.items():
        assert (result.losses > 0).all() and result.gradient.norm() > 0
        assert apart(again[name], result) == Distance(0.0, 0.0)
        distance = apart(rounded[name], result)
        assert 1e-6 < distance.losses < 0.02 and 1e-4 < distance.gradients < 0.2, (name, distance)


@pytest.mark.timeout(240)
def test_a_launch_trains_saves_and_resumes(tmp_path):
    write_world(tmp_path)
    whole, resumed = run_whole_and_in_parts("unigame_alternating_lora", tmp_path, "cpu")
    assert len(whole) == LAST and any("loss/adversarial" in m for m in whole)
    assert {"loss/total", "optim/grad_norm"} < set(whole[0]) and not any(name.startswith("perf/") for name in whole[0])
    assert whole == resumed
    for parts in (1, 2):
        recipe = load_recipe(str(tmp_path / f"unigame_alternating_lora_{parts}.yaml"), [])
        assert recipe.engine.deterministic and recipe.engine.precision == "bf16" and recipe.model.train == "lora"


@pytest.mark.parametrize("case", CASES)
def test_every_case_is_a_legal_recipe(case, tmp_path):
    recipe = load_recipe(str(write_recipe(tmp_path / "recipe.yaml", tmp_path, **CASES[case])), [])
    game = case.startswith("unigame")
    if game and recipe.objectives["unigame"].get("penalties"):
        assert recipe.objectives["unigame"]["clip"]["tau"] > 0, "a hinge that is never reached costs nothing"
    assert len(build_objectives(recipe)) == len(recipe.objectives)
    assert game == bool(build_plan(build_objectives(recipe)).aside)


def test_cases_cover_every_method_with_adapters_and_whole_models():
    for method in ("unigame", "unimrg", "aia"):
        cases = [case for case in CASES.values() if method in case.get("objectives", {})]
        trained = {case.get("model", {}).get("train", "full") for case in cases}
        assert trained == {"lora", "full"}, method


@pytest.mark.parametrize("name", SHAPES)
def test_every_profile_is_a_legal_recipe_of_a_published_size(name, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    script, recipe_file, *settings = SHAPES[name].command
    recipe = load_recipe(recipe_file, settings)
    assert Path(script).is_file() and recipe.model.weights == "random"
    assert recipe.model.size in find("models", recipe.model.family, UnifiedModel).sizes
    assert build_plan(build_objectives(recipe)).rows_per_micro_step() > 0


@pytest.mark.parametrize(
    ("error", "too_large"),
    [
        (CapacityError("The largest step does not fit: ..."), True),
        (ConfigError("No folder at model.path=nowhere."), False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    ],
)
def test_what_does_not_fit_is_told_from_what_fails(error, too_large, capfd, monkeypatch):
    def fail(arguments):
        raise error

    monkeypatch.setattr("os._exit", sys.exit)
    with pytest.raises(SystemExit):
        run_to_exit(fail, [])
    assert does_not_fit(capfd.readouterr().err) == too_large


def result(name: str, **fields) -> dict:
    measured = {
        "seconds": 1.25, "tokens_per_second": 6543.2, "useful_tokens_per_second": 4321.0, "flops": 2.5e14, "mfu": 0.375,
        "peak_memory_bytes": 3 * 2**34,
    }  # fmt: skip
    base = {"card": "Card A", "memory": 2**36, "torch": "2.0", "deepspeed": "0.1", "date": "2000-01-02"}
    return {"name": name, **base, "measured": measured, **fields}


def test_the_page_shows_each_card_and_what_did_not_fit(tmp_path):
    largest, other = list(SHAPES)[-1], list(SHAPES)[0]
    text = page([result(largest, measured=None), result(other), result(other, card="Card B")])
    assert "Not measured" not in text
    assert "## Card A\n\n64.0 GiB, torch 2.0, deepspeed 0.1, 2000-01-02" in text and "## Card B" in text
    row = f"| {SHAPES[other].label} | 1.25 | 6,543 | 4,321 | 250 T | 37.5% | 48.0 GiB |"
    assert text.count(row) == 2
    assert text.index(row) < text.index(f"| {SHAPES[largest].label} | does not fit |"), "rows in the order of the shapes"


def test_the_page_of_the_repository_is_what_the_script_writes(tmp_path):
    written = page(read_results(tmp_path))
    assert "Not measured yet." in written
    shown = PAGE.read_text()
    # Measured tables stand where the sentence is; the rest is the same.
    before, _, after = written.partition("## Measured")
    assert shown.startswith(before) and shown.endswith(after[after.index("## The commands") :])
