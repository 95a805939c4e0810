"""The best checkpoint, and an early end: decided by evaluations, kept over interruptions, said in the report."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megaunigame.checkpoint.runs import step_folder_of
from megaunigame.config import BestConfig, EarlyStopConfig, EvaluationConfig, load_recipe
from megaunigame.evaluation.run import evaluation_file
from megaunigame.monitoring.report import write_report
from megaunigame.monitoring.selection import SELECTION_FILE
from megaunigame.parallel.mesh import Mesh
from megaunigame.storage.whole_files import write_whole
from megaunigame.training.assembly import Assembly
from megaunigame.training.saves import Saves
from megaunigame.training.selection import Selection
from megaunigame.training.trainer import Trainer
from tests.multi_process.programs import LORA
from tests.multi_process.tiny_run import write_data, write_model, write_pictures, write_recipe
from tests.refusals import refused

METRIC = "evaluation/asking/accuracy"


def selection(patience: int = 2, min_delta: float = 0.0, mode: str = "max", metric: str = "asking/accuracy") -> Selection:
    early_stop = EarlyStopConfig(metric=metric, mode=mode, patience=patience, min_delta=min_delta)
    return Selection(BestConfig(metric="asking/accuracy", mode=mode), early_stop)


def stop_of(values: list[float], patience: int, min_delta: float, sign: int) -> int:
    """The number of evaluations after which a run stops, by definition: none of the last `patience` is better than the best
    before them. Larger than all: it does not."""
    best, since = -math.inf, 0
    for number, value in enumerate(values, start=1):
        better = math.isfinite(value) and (best == -math.inf or sign * value > best + min_delta)
        best, since = (sign * value, 0) if better else (best, since + 1)
        if since == patience:
            return number
    return len(values) + 1


VALUES = st.lists(st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0, math.nan]), st.floats(-2, 2)), min_size=1, max_size=12)


@example([0.0, 0.25, 0.25], 2, 0.25, 0, True)
@example([0.0, -0.25, -0.25], 2, 0.25, 2, False)
@given(VALUES, st.integers(1, 4), st.sampled_from([0.0, 0.25]), st.integers(0, 12), st.booleans())
def test_decisions_are_those_of_the_definition_also_after_an_interruption(values, patience, min_delta, cut, up):
    mode, sign = ("max", 1) if up else ("min", -1)
    chosen = selection(patience, min_delta, mode)
    chosen.observe(0, {METRIC: 99.0 * sign})
    stopped = len(values) + 1
    for number, value in enumerate(values, start=1):
        if number == cut:  # killed: what was saved goes on
            state = json.loads(json.dumps(chosen.state_dict(), allow_nan=False))
            chosen = selection(patience, min_delta, mode)
            chosen.load_state_dict(state)
        chosen.observe(10 * number, {METRIC: value})
        chosen.observe(10 * number, {METRIC: 99.0 * sign})  # the same evaluation, found again: not counted twice
        if chosen.stopped:
            stopped = number
            break
    assert stopped == stop_of(values, patience, min_delta, sign)
    seen = [sign * value if math.isfinite(value) else -math.inf for value in values[:stopped]]
    best = max(seen)
    assert chosen.best.step == (0 if best == -math.inf else 10 * (1 + seen.index(best)))


def test_what_is_said():
    chosen = selection(patience=3, min_delta=0.5)
    chosen.observe(0, {METRIC: 70.0})
    assert chosen.as_text() == ""
    chosen.observe(10, {METRIC: 71.25})
    assert chosen.as_text() == (
        "best checkpoint so far: asking/accuracy = 71.25 at step 10; 0 of 3 evaluations without a better asking/accuracy"
    )
    chosen.observe(20, {METRIC: 71.5})
    chosen.observe(25, {METRIC: math.nan})
    assert chosen.as_text().startswith("asking/accuracy is not finite, which is no improvement; best checkpoint so far")
    chosen.observe(30, {METRIC: 60.0})
    assert chosen.best.step == 20, "min_delta is of the early stop"
    assert chosen.stopped == (
        "stopped early after step 30: asking/accuracy = 71.25 at step 10: no better value by more than 0.5 in 3 evaluations "
        "(early_stop.patience=3)"
    )
    state = chosen.state_dict()
    more = selection(patience=4, min_delta=0.5)
    more.load_state_dict(state)
    assert not more.stopped, "with more patience the same run goes on"
    other = selection(metric="asking/match")
    other.load_state_dict(state)
    assert not other.stopped and other.watched.step == 0 and other.best.step == 20, "another metric begins again"
    assert Selection(BestConfig(), EarlyStopConfig()).state_dict() == {}


def test_a_wrong_name_is_refused_before_step_1():
    chosen = selection(metric="asking/acuracy")
    with refused("early_stop.metric", "'asking/acuracy'", "asking/accuracy"):
        chosen.observe(0, {METRIC: 1.0, "evaluation/asking/match": 2.0})
    full = selection(metric=METRIC)
    full.observe(0, {METRIC: 1.0})  # as in metrics.jsonl


def test_a_name_is_checked_at_the_first_evaluation_that_should_have_it():
    chosen = selection()
    chosen.observe(0, {METRIC: 1.0})
    chosen.observe(10, {METRIC: 1.0})
    state = json.loads(json.dumps(chosen.state_dict()))
    wrong = selection(metric="asking/acuracy")
    wrong.load_state_dict(state)
    with refused("early_stop.metric", "'asking/acuracy'"):
        wrong.observe(20, {METRIC: 1.0})
    known = selection()
    known.load_state_dict(state)
    known.observe(20, {"evaluation/asking/match": 2.0})
    assert known.watched.missing and known.watched.without == 1, "it may be missing once"


def test_values_of_other_settings_are_not_compared():
    def with_settings(limit: int, weights: str) -> Selection:
        suites = {"asking": {"limit": limit}, "other": {"limit": 3 * limit}}
        metric = "asking/accuracy"
        evaluation = EvaluationConfig(weights=weights, suites=suites)
        return Selection(BestConfig(metric=metric), EarlyStopConfig(metric=metric), evaluation)

    chosen = with_settings(8, "last")
    chosen.observe(10, {METRIC: 5.0})
    state = json.loads(json.dumps(chosen.state_dict()))
    for limit, weights, step in ((8, "last", 10), (9, "last", 0), (8, "ema", 0)):
        again = with_settings(limit, weights)
        again.load_state_dict(state)
        assert (again.best.step, again.watched.step, bool(again.how_resumed())) == (step, step, not step)


SCRIPT = {0: 50.0, 1: 10.0, 2: 30.0, 3: 20.0, 4: 25.0, 5: 26.0, 6: 99.0}
"""Step -> what the suite says of it: the best is step 2, and with patience 3 the run stops after step 5."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("selection")
    write_model(folder / "model")
    write_data(folder / "shards")
    write_pictures(folder / "pictures")
    return folder


@pytest.fixture
def scripted(monkeypatch):
    """Evaluations take no time; returns the steps that were evaluated."""
    evaluated = []

    def evaluate(parts, learner, say, leave_point=None):
        step = parts.state.step
        metrics = {"accuracy": SCRIPT[step]}
        result = {"metrics": metrics, "tables": [], "pictures": [], "questions": [], "seconds": 0.0}
        evaluation = {"step": step, "seconds": 0.0, "suites": {"teacher_forced": result}}
        write_whole(evaluation_file(parts.folder, step), json.dumps(evaluation))
        evaluated.append(step)
        return evaluation

    monkeypatch.setattr(Assembly, "evaluate", evaluate)
    return evaluated


def trainer_of(home, world, name: str, kind: type[Trainer] = Trainer, evaluated: int = 1, **checkpoint: object) -> Trainer:
    metric = {"metric": "teacher_forced/accuracy"}
    recipe = write_recipe(
        home / "recipe.yaml",
        home,
        model=LORA,
        objectives={"understanding": {"rows": 1}, "generation": {"caption_rows": 0, "pixel_rows": 0}},
        schedule={"steps": 6},
        checkpoint={"every": 100, "keep": 1, "best": metric, **checkpoint},
        early_stop={**metric, "patience": 3},
        evaluation={"every": evaluated, "suites": {"teacher_forced": {"shards": str(home / "pictures"), "limit": 2}}},
    )
    return kind(load_recipe(str(recipe), [f"output={home / 'runs' / name}"]), Mesh.of(world))


def kept(trainer: Trainer) -> list[str]:
    return sorted(path.name for path in (trainer.folder / "checkpoints").iterdir())


END = ["best", "latest", "step-00000002", "step-00000005"]


def test_a_run_keeps_its_best_step_and_stops(home, world, scripted, capsys):
    trainer = trainer_of(home, world, "stops")
    trainer.fit()
    assert (trainer.state.step, trainer.interrupted, scripted) == (5, "", [0, 1, 2, 3, 4, 5])
    assert kept(trainer) == END, "saved because it was the best; the newest is that of the end"
    assert step_folder_of(trainer.folder, "best").name == "step-00000002"
    why = "stopped early after step 5: teacher_forced/accuracy = 30 at step 2: no better value in 3 evaluations"
    assert why in capsys.readouterr().out
    page = write_report(trainer.folder).read_text()
    assert why in page and "best checkpoint: teacher_forced/accuracy = 30 at step 2" in page
    again = trainer_of(home, world, "stops")
    assert f"{why}" in (said := capsys.readouterr().out) and "; raise early_stop.patience to go on" in said
    again.dry_run = None
    again.fit()
    assert (again.state.step, kept(again), scripted) == (5, END, [0, 1, 2, 3, 4, 5]), "the same command has nothing to do"


class Killed(BaseException):
    """The process is gone."""


@contextlib.contextmanager
def killed_in(kind: type, method: str, step: int) -> Iterator[None]:
    """In the block, the process dies at the beginning of a method, at a step."""
    original = getattr(kind, method)

    def dying(self, *given, **named):
        if self.state.step == step:
            raise Killed
        return original(self, *given, **named)

    with mock.patch.object(kind, method, dying), pytest.raises(Killed):
        yield


@pytest.mark.fault(
    "killed between an evaluation and what it decides (best checkpoint, early stop)",
    does="the next launch reads the evaluation and decides the same",
    lost="",
)
@pytest.mark.parametrize("step", [2, 5])
def test_a_killed_run_decides_the_same(home, world, scripted, step):
    name = f"killed-{step}"
    with killed_in(Saves, "keep_best", step):
        trainer_of(home, world, name, every=1).fit()
    resumed = trainer_of(home, world, name, every=1)
    resumed.fit()
    assert (resumed.state.step, kept(resumed)) == (5, END)
    decided = json.loads((resumed.folder / SELECTION_FILE).read_text())
    assert decided["best"].endswith("= 30 at step 2") and decided["stopped"].startswith("stopped early after step 5")
    assert sorted(set(scripted)) == [0, 1, 2, 3, 4, 5]


def test_a_run_that_went_back_keeps_what_it_then_finds_best(home, world, scripted):
    trainer = trainer_of(home, world, "back", every=1, keep=9)
    trainer.fit()
    first = trainer.folder / "checkpoints" / "step-00000001"
    back = trainer_of(home, world, "back", every=1, keep=9, resume=str(first))
    assert (back.first_step, back.selection.best.step, back.selection.last) == (1, 0, 0)
    back.fit()
    assert back.state.step == 5 and step_folder_of(back.folder, "best").name == "step-00000002"
    assert scripted == [0, 1, 2, 3, 4, 5, 2, 3, 4, 5], "evaluations of the steps that it has left are not its own"
    assert sorted(file.stem for file in (back.folder / "evaluation" / "set-aside").glob("*.json")) == SET_ASIDE


SET_ASIDE = [f"step-0000000{step}" for step in (2, 3, 4, 5)]


def step_of(trainer: Trainer, name: str) -> str:
    return str(trainer.folder / "checkpoints" / name)


def test_a_best_checkpoint_that_is_gone_or_of_another_run_is_forgotten(home, world, scripted, monkeypatch, caplog):
    first = trainer_of(home, world, "lost", keep=9)
    first.fit()
    other = trainer_of(home, world, "other", keep=9, resume=step_of(first, "step-00000005"))
    assert other.selection.best.step == 2
    other.fit()
    assert other.selection.best.step == 0 and not (other.folder / "checkpoints" / "best").exists(), "it is in another folder"
    shutil.rmtree(step_of(first, "step-00000002"))
    lost = trainer_of(home, world, "lost", keep=9)
    lost.fit()
    assert not (lost.folder / "checkpoints" / "best").exists() and "of step 2, is not in" in caplog.text
    assert json.loads((lost.folder / SELECTION_FILE).read_text())["best"] == ""


def test_a_run_that_begins_again_marks_its_own_steps(home, world, scripted, monkeypatch):
    """The folder of a step that an earlier launch has saved has other weights."""
    first = trainer_of(home, world, "again", keep=9)
    first.fit()
    old = Path(step_of(first, "step-00000002")) / "manifest.json"
    before = json.loads(old.read_text())["saves"]
    again = trainer_of(home, world, "again", keep=9, resume="never")
    again.fit()
    assert step_folder_of(again.folder, "best").name == "step-00000002" and json.loads(old.read_text())["saves"] > before
    without = trainer_of(home, world, "again", keep=9, best={"metric": ""})
    without.fit()
    assert not (without.folder / "checkpoints" / "best").exists(), "no metric: nothing is protected"


def test_a_wrong_name_after_trained_steps_costs_none_of_them(home, world, scripted):
    with killed_in(Trainer, "train_step", 2):
        trainer_of(home, world, "typo", every=1, evaluated=3).fit()
    wrong = trainer_of(home, world, "typo", evaluated=3, best={"metric": "teacher_forced/acuracy"})
    assert wrong.first_step == 1
    with refused("checkpoint.best.metric", "'teacher_forced/acuracy'"):
        wrong.fit()
    assert kept(wrong) == ["latest", "step-00000003"]
    with refused("'teacher_forced/acuracy'"):
        trainer_of(home, world, "typo", evaluated=3, best={"metric": "teacher_forced/acuracy"})
    right = trainer_of(home, world, "typo", evaluated=3)
    right.fit()
    assert (right.state.step, step_folder_of(right.folder, "best").name) == (6, "step-00000006")


def test_requests_for_the_best(home, world, tmp_path):
    with refused("has no best checkpoint", "checkpoint.best.metric"):
        step_folder_of(tmp_path, "best")
    with refused("'newest' is not a step"):
        step_folder_of(tmp_path, "newest")
    assert step_folder_of(tmp_path, "7") == step_folder_of(tmp_path, 7) == tmp_path / "checkpoints" / "step-00000007"


@pytest.mark.parametrize(
    ("evaluation", "parts"),
    [
        ({"suites": {"asking": {}}}, ["checkpoint.best.metric=teacher_forced/accuracy", "Legal labels: asking."]),
        ({"every": 0}, ["checkpoint.best.metric", "evaluation.every=N"]),
        ({"before": False}, ["checkpoint.best.metric", "evaluation.before=true"]),
    ],
)
def test_metrics_that_no_evaluation_reports_are_refused(home, evaluation, parts):
    settings = {"every": 1, "suites": {"teacher_forced": {"shards": "x"}}, **evaluation}
    best = {"best": {"metric": "teacher_forced/accuracy"}}
    recipe = write_recipe(home / "refused.yaml", home, evaluation=settings, checkpoint=best)
    with refused(*parts):
        load_recipe(str(recipe), [])
