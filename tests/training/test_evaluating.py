"""What a launch makes of an evaluation that an earlier one has done."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from megaunigame.config import BestConfig, EarlyStopConfig
from megaunigame.evaluation.run import evaluation_file, scalars
from megaunigame.monitoring.monitor import Monitor
from megaunigame.parallel.interruption import Interruption
from megaunigame.training.evaluating import Evaluations
from megaunigame.training.evaluating_alone import evaluated, results_folder
from megaunigame.training.selection import Selection
from tests.worlds import OneRank

STEP = 4
EVALUATION = {
    "step": STEP,
    "seconds": 1.0,
    "suites": {"asking": {"metrics": {"accuracy": 0.5}, "tables": [], "pictures": [], "questions": [], "seconds": 1.0}},
}


def evaluations(folder) -> Evaluations:
    settings = SimpleNamespace(before=True, every=2)
    recipe = SimpleNamespace(evaluation=settings, schedule=SimpleNamespace(steps=8))
    state, mesh = SimpleNamespace(step=STEP), SimpleNamespace(world=OneRank())
    parts = SimpleNamespace(recipe=recipe, mesh=mesh, folder=folder, suites={"asking": None}, state=state, goes_on_here=True)
    selection = Selection(BestConfig(metric="asking/accuracy"), EarlyStopConfig())
    return Evaluations(parts, Interruption(), selection)


def monitor(folder) -> Monitor:
    return Monitor(folder, every=1, total_steps=8, start_step=STEP + 1, rank=0, trackers=[], progress=False)


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.fault(
    "killed between the file of an evaluation and its row in metrics.jsonl", does="the next launch writes the row", lost=""
)
def test_an_evaluation_without_a_row_is_recorded_once(tmp_path):
    file = evaluation_file(tmp_path, STEP)
    file.parent.mkdir()
    file.write_text(json.dumps(EVALUATION))
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": {STEP}, "loss/total": 1.0}}\n')
    for _ in range(2):
        assert not evaluations(tmp_path).owed(STEP)
        launch = evaluations(tmp_path)
        launch.record_missing(monitor(tmp_path))
        assert (launch.selection.best.step, launch.selection.best.value) == (STEP, 0.5), "it counts for the best checkpoint"
        _, row = lines(tmp_path)
        assert scalars(EVALUATION) and row == {**row, "step": STEP, **scalars(EVALUATION)}


def test_an_evaluation_without_the_suite_of_a_metric_is_made_again(tmp_path):
    file = evaluation_file(tmp_path, STEP)
    file.parent.mkdir()
    file.write_text(json.dumps(EVALUATION))
    launch = evaluations(tmp_path)
    launch.selection = Selection(BestConfig(metric="added/accuracy"), EarlyStopConfig())
    launch.record_missing(monitor(tmp_path))
    assert launch.owed(STEP) and launch.selection.best.last == 0
    launch = evaluations(tmp_path)
    launch.selection.measured_otherwise = True
    assert launch.owed(STEP), "its suite had other settings"


def test_an_evaluation_alone_leaves_those_of_a_run(tmp_path):
    assert results_folder(tmp_path) == tmp_path
    (tmp_path / "metrics.jsonl").write_text("")
    assert results_folder(tmp_path) == tmp_path / "evaluated_alone"


def test_what_was_not_evaluated_is_not_recorded(tmp_path, caplog):
    evaluations(tmp_path).record_missing(monitor(tmp_path))
    assert lines(tmp_path) == []
    file = evaluation_file(tmp_path, STEP)
    file.parent.mkdir()
    for damaged in ("{", f'{{"step": {STEP}}}'):
        file.write_text(damaged)
        caplog.clear()
        assert evaluations(tmp_path).owed(STEP), "it is made again"
        evaluations(tmp_path).record_missing(monitor(tmp_path))
        assert "step-00000004.json" in caplog.text and lines(tmp_path) == []


def test_an_evaluation_of_another_run_is_not_this_ones(tmp_path):
    """The run goes on from a checkpoint of another one, in a folder that has been used before."""
    file = evaluation_file(tmp_path, STEP)
    file.parent.mkdir()
    file.write_text(json.dumps(EVALUATION))
    launch = evaluations(tmp_path)
    launch.parts.goes_on_here = False
    assert launch.owed(STEP) and not launch.stopped_before()
    launch.record_missing(monitor(tmp_path))
    assert launch.selection.best.step == 0


def test_trackers_are_shown_an_evaluation_when_its_numbers_are_recorded(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(Monitor, "evaluated", lambda self, step: shown.append((step, len(lines(tmp_path)))))
    launch = evaluations(tmp_path)
    launch.parts.evaluate = lambda *_: EVALUATION
    assert launch.run(None, monitor(tmp_path)) and shown == [(STEP, 1)]
    file = evaluation_file(tmp_path, STEP)
    file.parent.mkdir()
    file.write_text(json.dumps(EVALUATION))
    (tmp_path / "metrics.jsonl").unlink()
    for _ in range(2):
        evaluations(tmp_path).record_missing(monitor(tmp_path))
    assert shown == [(STEP, 1), (STEP, 1)]


def test_an_evaluation_says_which_weights_it_reads(tmp_path):
    """`output=` of another folder hides the checkpoints of the run: the first weights are not to be taken for trained ones."""
    checkpoint = tmp_path / "checkpoints" / "step-00000004"
    assert evaluated(checkpoint, 4, tmp_path) == f"evaluating step 4, of {checkpoint}"
    assert f"begins with, no checkpoint of {tmp_path}" in evaluated(None, 0, tmp_path)
