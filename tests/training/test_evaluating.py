"""What a launch makes of an evaluation that an earlier one has done."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from megaunigame.errors import ConfigError
from megaunigame.evaluation.run import evaluation_file, scalars
from megaunigame.monitoring.monitor import Monitor
from megaunigame.parallel.interruption import Interruption
from megaunigame.training.evaluating import Evaluations
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
    parts = SimpleNamespace(recipe=recipe, mesh=mesh, folder=folder, suites={"asking": None}, state=state)
    return Evaluations(parts, None, Interruption())


def monitor(folder) -> Monitor:
    return Monitor(folder, every=1, total_steps=8, start_step=STEP + 1, rank=0, tensorboard=False, progress=False)


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
        evaluations(tmp_path).record_missing(monitor(tmp_path))
        _, row = lines(tmp_path)
        assert scalars(EVALUATION) and row == {**row, "step": STEP, **scalars(EVALUATION)}


def test_what_was_not_evaluated_is_not_recorded(tmp_path):
    evaluations(tmp_path).record_missing(monitor(tmp_path))
    assert lines(tmp_path) == []
    file = evaluation_file(tmp_path, STEP)
    file.parent.mkdir()
    file.write_text("{")
    with pytest.raises(ConfigError, match=r"step-00000004\.json is not an evaluation .*Delete it"):
        evaluations(tmp_path).record_missing(monitor(tmp_path))
