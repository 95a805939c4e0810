"""W&B and MLflow themselves, offline: skipped where they are not installed (pip install 'megaunigame[trackers]')."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.monitoring.test_trackers import launch


def test_mlflow_keeps_a_run_in_the_run_folder(tmp_path, monkeypatch, caplog):
    tracking = pytest.importorskip("mlflow.tracking")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    launch(tmp_path, ["mlflow"], 1, 4, killed=True)
    launch(tmp_path, ["mlflow"], 3, 5)
    assert not caplog.records
    client = tracking.MlflowClient(f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("megaunigame")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == "a run"
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "loss/total")] == [1, 2, 3, 4, 5]
    assert run.data.params["optimizer.lr"] == "0.001" and len(run.data.params) == 153
    files = [file.path for file in client.list_artifacts(run.info.run_id, "pictures/Shown/line 1")]
    assert "pictures/Shown/line 1/step-00000002.png" in files
    assert list((tmp_path / "mlflow" / "artifacts").rglob("step-00000002.png"))


TRACKED = """
import logging, sys
from pathlib import Path
from tests.monitoring.test_trackers import launch
logging.basicConfig(level=logging.WARNING)
launch(Path(sys.argv[1]), ["wandb"], int(sys.argv[2]), int(sys.argv[3]))
"""


def test_wandb_keeps_a_run_for_a_later_sync(tmp_path):
    """In processes of their own: W&B does not forget a run within a process."""
    pytest.importorskip("wandb")
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path / "elsewhere")}
    for steps in (("1", "3"), ("4", "5")):
        done = subprocess.run(
            [sys.executable, "-c", TRACKED, str(tmp_path), *steps], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0 and "fails" not in done.stdout + done.stderr, done.stdout + done.stderr
    first, second = sorted((tmp_path / "wandb").glob("offline-run-*"))
    ids = {folder.name.rpartition("-")[2] for folder in (first, second)}
    assert len(ids) == 1, "the second launch goes on in the run of the first"
    assert list(first.glob("files/media/images/pictures/*.png"))
    assert all(next(folder.glob("run-*.wandb")).stat().st_size > 1000 for folder in (first, second))
