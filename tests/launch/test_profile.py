"""Profiles, and runs with random weights: they need neither a checkpoint nor data."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megaunigame.config import load_recipe
from megaunigame.engine.peak_memory import peak_memory
from megaunigame.errors import ConfigError
from megaunigame.monitoring import names
from megaunigame.objectives.building import build_objectives, build_plan
from megaunigame.parallel.mesh import Mesh
from megaunigame.profiling import measure
from megaunigame.profiling.measure import Measurement
from megaunigame.profiling.page import bars, profile_page
from megaunigame.profiling.planned import planned_bytes
from megaunigame.profiling.text import fact_rows, phase_rows, ratio_rows, unit_name, warm_up_warning
from megaunigame.profiling.twin import fine_tuning_twin
from megaunigame.step.phases import BACKWARD, DATA, GENERATE, PHASES, PLAYERS, UNDERSTAND
from tests.data.shard_files import write_shards
from tests.multi_process.launcher import REPOSITORY, run_script
from tests.multi_process.tiny_run import sample, write_recipe
from tests.worlds import OneRank

LENGTH = 168
"""Tokens of the longest row; a picture takes 64."""
GAME = "objectives={unigame: {clean_rows: 2, hard_rows: 1, attack_rows: 3, clip: null, every: 2}}"
"""Of three steps after one of warm-up, the second attacks: means and medians differ."""
TWIN = "sft of tiny"


def shape(tmp_path, **settings) -> Path:
    """A recipe without a model folder: the tiny Janus, drawn at random."""
    model = {"path": "", "weights": "random", "size": "tiny", "train": "lora", "max_length": LENGTH}
    return write_recipe(tmp_path / "recipe.yaml", tmp_path, **{"model": model, **settings})


@pytest.fixture(scope="module")
def profile(tmp_path_factory) -> tuple[list[dict], str, str]:
    """JSON, page and terminal of a game against plain fine-tuning; the shards of the recipe do not exist."""
    home = tmp_path_factory.mktemp("profile")
    recipe = shape(home, schedule={"steps": 0, "epochs": 2, "warmup_steps": 0})
    options = ["--against", "sft", "--steps", 3, "--warmup", 1, "--out", home / "out"]
    done = run_script("launch/profile.py", recipe, GAME, "seed=3", *options)
    assert done.returncode == 0 and done.stderr.count("1 step of warm-up: too few") == 1, done.stderr
    said = done.stdout
    assert sorted(path.name for path in (home / "out").iterdir()) == ["profile.html", "profile.json"]
    return json.loads((home / "out" / "profile.json").read_text()), (home / "out" / "profile.html").read_text(), said


def test_rows_have_the_legal_length_and_every_pass_counts(profile):
    game, sft = profile[0]
    assert (game["name"], sft["name"], game["steps"], game["warmup"]) == ("tiny", TWIN, 3, 1)
    assert game["learner_rows"] == sft["learner_rows"] == 3
    assert sft["tokens"] == pytest.approx(3 * LENGTH)
    attacking, plain = 3 + 3 + 3, 3  # rows: redrawn, asked about, and the learner's own
    assert game["tokens"] == pytest.approx((attacking + 2 * plain) / 3 * LENGTH)
    assert game["passes"] == pytest.approx((3 + 1 + 1) / 3) and sft["passes"] == 1
    assert sft["useful_tokens_per_second"] == pytest.approx(sft["tokens_per_second"])


def test_seconds_are_those_of_the_phases(profile):
    game, sft = profile[0]
    for recipe in profile[0]:
        assert set(recipe["phases"]) == set(PHASES)
        assert min(recipe["phases"][name] for name in (DATA, UNDERSTAND, BACKWARD)) > 0
        assert recipe["phases"][GENERATE] == 0 and recipe["mfu"] is None and recipe["planned_bytes"] is None
        least, most = recipe["seconds_range"]
        assert least <= recipe["seconds"] <= most and least < sum(recipe["phases"].values()) < 1.1 * most
        every_step = recipe["tokens"] / recipe["tokens_per_second"]
        assert every_step == pytest.approx(sum(recipe["phases"].values()), rel=0.1), "of all steps together"
    assert game["phases"][PLAYERS] > 10 * sft["phases"][PLAYERS]


def test_operations_are_about_four_per_weight_and_token_under_lora(profile):
    game, sft = profile[0]
    language = 6 * (4 * 192 * 192 + 3 * 192 * 512)
    tower = 4 * (4 * 128 * 128 + 2 * 128 * 384)
    at_least = 3 * LENGTH * 4 * language + 3 * 64 * 2 * tower
    assert at_least < sft["flops"] < 1.5 * at_least
    attacking = 3 * game["flops"] - 2 * sft["flops"]  # the steps without an attack are those of the twin
    assert 1.5 * sft["flops"] < attacking < 5 * sft["flops"]


def test_page_and_terminal_say_the_same(profile):
    (game, sft), page, said = profile
    assert ">megaunigame profile " in page and "seed=3" in page and page.count("data:image/png;base64,") == 1
    assert "<h1>Profile of tiny</h1>" in page and "1 step of warm-up: too few" in page
    for text in (TWIN, "3 steps after 1 step of warm-up, 1 rank, CPU", "useful tokens/s", "in units of its plain fine-tuning"):
        assert text.lower() in said.lower() and text.lower() in page.lower(), text
    ratio = f"{game['flops'] / sft['flops']:.2f}"
    assert f" {ratio} " in said and f">{ratio}<" in page


def test_a_random_run_trains_reports_what_it_costs_and_resumes_itself(tmp_path):
    write_shards(tmp_path / "shards", [8, 8], fields=sample)
    recipe = shape(tmp_path, schedule={"steps": 2, "warmup_steps": 0}, checkpoint={"every": 1})
    for steps in (2, 3):
        run_script("launch/train.py", recipe, f"schedule.steps={steps}", check=True)
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


def test_the_twin_has_the_rows_of_each_pass(tmp_path):
    rows = "rows: {understanding: 5, segmentation: 2, depth: 1}, stream: train"
    recipe = load_recipe(str(shape(tmp_path)), [f"objectives={{unimrg: {{{rows}}}, generation: {{caption_rows: 3}}}}"])
    twin = fine_tuning_twin(recipe, build_plan(build_objectives(recipe)))
    assert twin.objectives == {
        "understanding": {"rows": 5, "stream": "train"},
        "generation": {"caption_rows": 3, "pixel_rows": 3, "stream": "train"},
    }
    plans = [build_plan(build_objectives(r)) for r in (recipe, twin)]
    assert [plan.rows_per_micro_step() for plan in plans] == [11, 11] and recipe.model == twin.model


def test_tasks_that_take_turns_have_no_twin(tmp_path):
    objectives = "objectives={unimrg: {rows: {understanding: 5, pixel: 2}, stream: train, schedule: round_robin}}"
    recipe = load_recipe(str(shape(tmp_path)), [objectives])
    with pytest.raises(ConfigError, match=r"in rotation.*objectives\.unimrg\.schedule=all"):
        fine_tuning_twin(recipe, build_plan(build_objectives(recipe)))


def test_a_profile_without_steps_is_refused(tmp_path):
    done = run_script("launch/profile.py", shape(tmp_path), "--steps", "0")
    assert done.returncode == 2 and "--steps and --warmup must be at least 1; got 0 and 3" in done.stderr
    assert "too few" not in done.stderr


def test_a_profile_of_weights_that_are_not_there_says_how_to_do_without(tmp_path):
    done = run_script("launch/profile.py", shape(tmp_path), "model.path=nowhere", "model.weights=pretrained", "model.size=7b")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "No folder at model.path=nowhere" in done.stderr and "megaunigame profile: model.weights=random." in done.stderr


def test_memory_is_planned_for_the_ranks_of_the_profile(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("WORLD_SIZE", "5")  # of the launcher of the profile, not of the plan
    monkeypatch.setenv("RANK", "3")
    recipe = load_recipe(str(shape(tmp_path)), ["model.train=full", "objectives={understanding: {rows: 3}}"])
    one, three = (planned_bytes(recipe, ranks) for ranks in (1, 3))
    assert one is not None and three is not None
    elements = 4.9e6  # each takes 20 bytes in float32, of which a third is left on each of three ranks
    assert one > 20 * elements and 0.5 < (one - three) / (20 * elements * 2 / 3) < 1.1, (one, three)
    assert planned_bytes(dataclasses.replace(recipe, objectives={}), 1) is None
    assert "tiny is profiled without a plan of its memory. ConfigError: `objectives` is empty" in capsys.readouterr().err


def test_rates_are_those_of_all_steps_together(monkeypatch):
    monkeypatch.setattr(measure, "bytes_per_rank", lambda *_: {"weights": 3, "gradients": 4})
    trainer = SimpleNamespace(
        world=OneRank(size=2),
        mesh=Mesh.of(OneRank(size=2)),
        stepper=SimpleNamespace(performance=SimpleNamespace(peak=50.0)),
        learner=SimpleNamespace(module=None, ema=None),
        recipe=SimpleNamespace(engine=SimpleNamespace(precision="bf16")),
        plan=SimpleNamespace(rows_per_micro_step=lambda: 7),
        accumulation=3,
    )
    steps = [(1.0, 10, 8, 100, 2), (1.5, 10, 9, 100, 2), (4.0, 60, 31, 1900, 6)]
    metrics = [
        {
            names.PERF_STEP_SECONDS: seconds,
            names.PERF_TOKENS_PER_SECOND: tokens / seconds,
            names.PERF_USEFUL_TOKENS_PER_SECOND: useful / seconds,
            names.PERF_ALLGATHER_BYTES: gathered,
            names.PERF_PASSES: passes,
        }
        for seconds, tokens, useful, gathered, passes in steps
    ]
    phases = [dict.fromkeys(PHASES, 0.0) | {BACKWARD: step[0]} for step in steps]
    m = measure._summary("a", trainer, metrics, phases, [90.0, 90.0, 480.0], warmup=3, peak=11, planned=13)  # type: ignore
    assert (m.seconds, m.seconds_range) == (1.5, (1.0, 4.0))
    assert m.tokens == pytest.approx(80 / 3) and m.tokens_per_second == pytest.approx(80 / 6.5)
    assert m.useful_tokens_per_second == pytest.approx(48 / 6.5) and m.gathered_bytes == 700
    assert m.passes == pytest.approx(10 / 3) and m.flops == 220
    assert m.mfu == pytest.approx(660 / 6.5 / (50 * 2))
    assert (m.states_bytes, m.planned_bytes, m.peak_memory_bytes, m.learner_rows) == (7, 13, 11, 42)
    assert m.phases[BACKWARD] == pytest.approx(6.5 / 3)


def test_the_peak_of_a_step_is_reported_by_the_next_one(monkeypatch):
    monkeypatch.setattr(measure, "peak_memory", lambda device: 40)
    world = OneRank(size=2)
    assert measure._peak(world, [{names.PERF_PEAK_MEMORY_BYTES: peak} for peak in (90.0, 30.0, 20.0)]) == 40
    assert measure._peak(world, [{names.PERF_PEAK_MEMORY_BYTES: peak} for peak in (90.0, 50.0, 20.0)]) == 50


def measured(name: str, seconds: float, **more: Any) -> Measurement:
    """A recipe of which only the seconds matter."""
    numbers: dict[str, Any] = dict.fromkeys([field.name for field in dataclasses.fields(Measurement)], 1)
    numbers |= {"name": name, "warmup": 3, "device": "CPU", "mfu": None, "planned_bytes": None, "gathered_bytes": 0}
    numbers |= {"seconds": seconds, "seconds_range": (seconds, seconds)}
    numbers["phases"] = dict.fromkeys(PHASES, 0.0) | {BACKWARD: 1.5 * seconds}
    return Measurement(**{**numbers, **more})


PAIRS = [measured("a", 6), measured("sft of a", 2), measured("b", 12), measured("sft of b", 3)]


def test_each_recipe_is_compared_with_its_own_twin():
    rows = {row[0]: row[1:] for row in ratio_rows(PAIRS)}
    assert rows["seconds, median"] == rows["seconds, mean"] == ["3.00", "1.00", "4.00", "1.00"]
    assert rows["gathered weights"] == ["-"] * 4, "one rank gathers nothing"
    alone = [measured("a", 6), measured("b", 12)]
    assert ratio_rows(alone)[0] == ["seconds, mean", "0.50", "1.00"]
    assert unit_name(PAIRS) == "its plain fine-tuning" and unit_name(alone) == "b"


def test_phases_that_took_no_time_are_left_out_of_tables_and_bars():
    short_attack = dict.fromkeys(PHASES, 0.0) | {BACKWARD: 6.0, PLAYERS: 1e-6}
    recipe = measured("a", 6, phases=short_attack)
    assert [row[0] for row in phase_rows([recipe])] == [BACKWARD, "step, mean"]
    other = measured("b", 6, phases=short_attack | {PLAYERS: 2.0})
    assert phase_rows([recipe, other])[0] == [PLAYERS, "-", "2.0000 (25%)"]
    assert [text.get_text() for text in bars([recipe]).legends[0].get_texts()] == [BACKWARD]


def test_tables_show_the_spread_of_the_seconds_and_the_plan():
    first = measured("a", 6, seconds_range=(5.0, 9.5), planned_bytes=3 * 2**30, peak_memory_bytes=2**31, passes=1234.5)
    rows = {row[0]: row[1:] for row in fact_rows([first, measured("b", 7)])}
    assert rows["seconds, least to most"] == ["5 to 9.5", "7 to 7"]
    assert rows["planned memory, one rank"] == ["3.0 GiB", "-"] and rows["peak memory, one rank"][0] == "2.0 GiB"
    assert rows["passes, one rank"] == ["1,234.50", "1"]
    assert "planned memory, one rank" not in [row[0] for row in fact_rows([measured("b", 7)])]


def test_the_page_names_its_recipes_and_counts_in_words():
    several = profile_page(PAIRS, "a --out b")
    assert '<span style="white-space: nowrap">--out</span> b' in several
    assert "<h1>Profile of a, b</h1>" in several and "1 step after 3 steps of warm-up, 1 rank, CPU" in several
    assert "too few" not in several and 'class="tile"' not in several
    assert "In units of its plain fine-tuning" in several
    alone = profile_page([measured("a", 6, mfu=0.25), measured("sft of a", 2)], "typed")
    assert "<b>3.00</b><span>times as long as plain fine-tuning" in alone and "<b>25.0%</b><span>MFU" in alone


def test_too_little_warm_up_is_said_with_its_reason():
    assert warm_up_warning(3) == ""
    assert warm_up_warning(2).startswith("2 steps of warm-up: too few") and "ZeRO-3" in warm_up_warning(2)


def test_the_peak_of_a_single_step_is_that_of_its_rank():
    """A step reports the peak of the step before it, so one step alone has none."""
    assert measure._peak(OneRank(), [{}]) == pytest.approx(peak_memory(OneRank().device), rel=0.1)
