"""Profiles, and runs with random weights: they need neither a checkpoint nor data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megaunigame.config import load_recipe
from megaunigame.errors import ConfigError
from megaunigame.objectives.building import build_objectives, build_plan
from megaunigame.phases import ATTACK, BACKWARD, DATA, GENERATE, PHASES, UNDERSTAND
from megaunigame.profiling.measure import Measured
from megaunigame.profiling.text import phase_rows, ratio_rows
from megaunigame.profiling.twin import fine_tuning_twin
from tests.data.shard_files import write_shards
from tests.multi_process.launcher import REPOSITORY
from tests.multi_process.tiny_run import sample, write_recipe

LENGTH = 168
"""Tokens of the longest row; a picture takes 64."""
GAME = "objectives={unigame: {clean_rows: 2, hard_rows: 1, attack_rows: 3, clip: null}}"


def launch(script: str, *arguments: object) -> str:
    """What a launch script says; in a process of its own, where it can end its process group."""
    command = [sys.executable, f"launch/{script}", *map(str, arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def shape(tmp_path: Path, **settings) -> Path:
    """A recipe without a model folder: the tiny Janus, drawn at random."""
    model = {"path": "", "weights": "random", "size": "tiny", "train": "lora", "max_length": LENGTH}
    return write_recipe(tmp_path / "recipe.yaml", tmp_path, **{"model": model, **settings})


@pytest.fixture(scope="module")
def profile(tmp_path_factory) -> tuple[list[dict], str, str]:
    """JSON, page and terminal of a game against plain fine-tuning; the shards of the recipe do not exist."""
    home = tmp_path_factory.mktemp("profile")
    recipe = shape(home, schedule={"steps": 1, "warmup_steps": 0})
    options = ["--against", "sft", "--steps", 2, "--warmup", 1, "--out", home / "out"]
    said = launch("profile.py", recipe, GAME, "seed=3", *options)
    assert sorted(path.name for path in (home / "out").iterdir()) == ["profile.html", "profile.json"]
    return json.loads((home / "out" / "profile.json").read_text()), (home / "out" / "profile.html").read_text(), said


def test_rows_have_the_legal_length_and_every_pass_counts(profile) -> None:
    game, sft = profile[0]
    assert (game["name"], sft["name"], game["steps"], game["warmup"]) == ("tiny", "sft", 2, 1)
    assert game["learner_rows"] == sft["learner_rows"] == 3
    assert sft["tokens"] == pytest.approx(3 * LENGTH)
    assert game["tokens"] == pytest.approx((3 + 3 + 3) * LENGTH), "redrawn, asked about, and the learner's own"
    assert (game["passes"], sft["passes"]) == (3, 1)
    assert sft["useful_tokens_per_second"] == pytest.approx(sft["tokens_per_second"])


def test_seconds_are_those_of_the_phases(profile) -> None:
    game, sft = profile[0]
    for recipe in profile[0]:
        assert set(recipe["phases"]) == set(PHASES)
        assert min(recipe["phases"][name] for name in (DATA, UNDERSTAND, BACKWARD)) > 0
        assert recipe["phases"][GENERATE] == 0 and recipe["mfu"] is None
    assert game["phases"][ATTACK] > 10 * sft["phases"][ATTACK]


def test_operations_are_about_four_per_weight_and_token_under_lora(profile) -> None:
    game, sft = profile[0]
    language = 6 * (4 * 192 * 192 + 3 * 192 * 512)
    tower = 4 * (4 * 128 * 128 + 2 * 128 * 384)
    at_least = 3 * LENGTH * 4 * language + 3 * 64 * 2 * tower
    assert at_least < sft["flops"] < 1.5 * at_least
    assert game["flops"] > 1.5 * sft["flops"]


def test_page_and_terminal_say_the_same(profile) -> None:
    (game, sft), page, said = profile
    assert "profile.py" in page and "seed=3" in page and page.count("data:image/png;base64,") == 1
    for text in ("tiny", "sft", "attack", "useful tokens/s", "planned model states", "in units of sft"):
        assert text.lower() in said.lower() and text.lower() in page.lower(), text
    ratio = f"{game['flops'] / sft['flops']:.2f}"
    assert f" {ratio} " in said and f">{ratio}<" in page


def test_a_random_run_trains_reports_what_it_costs_and_resumes_itself(tmp_path) -> None:
    write_shards(tmp_path / "shards", [8, 8], fields=sample)
    recipe = shape(tmp_path, schedule={"steps": 2, "warmup_steps": 0}, checkpoint={"every": 1})
    for steps in (2, 3):
        launch("train.py", recipe, f"schedule.steps={steps}")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        share = line["perf/useful_tokens_per_second"] / line["perf/tokens_per_second"]
        assert line["perf/useful_token_share"] == pytest.approx(share) and 0 < share < 1
        assert 3 * 64 < round(line["perf/tokens_per_second"] * line["perf/step_seconds"]) <= 5 * LENGTH
        assert line["perf/peak_memory_bytes"] > 100e6
        assert "perf/mfu" not in line, "nobody knows the peak of a CPU"
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-00000003" / "train_state.json").read_text())
    assert state["weights"] == "random"


def test_the_twin_has_the_rows_of_each_pass(tmp_path) -> None:
    rows = "rows: {understanding: 5, segmentation: 2, depth: 1}, stream: train"
    recipe = load_recipe(str(shape(tmp_path)), [f"objectives={{unimrg: {{{rows}}}, generation: {{caption_rows: 3}}}}"])
    twin = fine_tuning_twin(recipe, build_plan(build_objectives(recipe)))
    assert twin.objectives == {
        "understanding": {"rows": 5, "stream": "train"},
        "generation": {"caption_rows": 3, "pixel_rows": 3, "stream": "train"},
    }
    plans = [build_plan(build_objectives(r)) for r in (recipe, twin)]
    assert [plan.rows_per_micro_step() for plan in plans] == [11, 11] and recipe.model == twin.model


def test_tasks_that_take_turns_have_no_twin(tmp_path) -> None:
    objectives = "objectives={unimrg: {rows: {understanding: 5, pixel: 2}, stream: train, schedule: round_robin}}"
    recipe = load_recipe(str(shape(tmp_path)), [objectives])
    with pytest.raises(ConfigError, match=r"take turns.*objectives\.unimrg\.schedule=all"):
        fine_tuning_twin(recipe, build_plan(build_objectives(recipe)))


def test_no_step_is_no_profile(tmp_path) -> None:
    command = [sys.executable, "launch/profile.py", str(shape(tmp_path)), "--steps", "0"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2 and "--steps and --warmup must be at least 1; got 0 and 3" in done.stderr


def measured(name: str, seconds: float) -> Measured:
    """A recipe of which only the seconds matter."""
    counts = dict(tokens=1, tokens_per_second=1, useful_tokens_per_second=1, flops=2e9, mfu=None, peak_memory_bytes=1)
    size = dict(planned_bytes={}, gathered_bytes=0, passes=1, learner_rows=1)
    phases = dict.fromkeys(PHASES, 0.0) | {BACKWARD: seconds}
    return Measured(name, steps=1, warmup=1, world_size=1, device="CPU", seconds=seconds, phases=phases, **counts, **size)


def test_each_recipe_is_compared_with_its_own_twin() -> None:
    pairs = [measured("a", 6), measured("sft", 2), measured("b", 12), measured("sft", 3)]
    rows = {row[0]: row[1:] for row in ratio_rows(pairs)}
    assert rows["seconds, median"] == ["3.00", "1.00", "4.00", "1.00"]
    assert rows["gathered weights"] == ["-"] * 4, "one rank gathers nothing"
    plain = ratio_rows([measured("a", 6), measured("b", 12)])
    assert plain[0] == ["seconds, median", "0.50", "1.00"]


def test_phases_that_took_no_time_are_left_out() -> None:
    assert [row[0] for row in phase_rows([measured("a", 6)])] == [BACKWARD, "step, mean"]
