"""Trackers: the same numbers, pictures, texts and settings in each; one run over several launches; failures end nothing."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from megaunigame.config import load_recipe
from megaunigame.errors import ConfigError
from megaunigame.monitoring.monitor import Monitor
from megaunigame.monitoring.trackers import delivery
from megaunigame.monitoring.trackers.base import RunFacts
from megaunigame.monitoring.trackers.together import check_trackers
from megaunigame.pixels import Panel
from tests.monitoring.fake_trackers import install
from tests.monitoring.runs import write_evaluation

SETTINGS = {"optimizer.lr": 0.001, "name": "x", "optimizer.betas": [0.9, 0.95], **{f"s.{n}": n for n in range(150)}}
TINY = "launch/recipes/tiny_sft.yaml"


def monitor(folder: Path, start: int, trackers, settings=SETTINGS, **changes) -> Monitor:
    given = {"every": 100, "total_steps": 5, "rank": 0, "progress": False, **changes}
    return Monitor(folder, start_step=start, trackers=trackers, run=RunFacts("a run", "name: x\n", settings), **given)


def panel(step: int) -> Panel:
    return Panel("Shown", {"source": torch.full((3, 6, 9), step, dtype=torch.uint8)}, {"question": "is it ?"})


def launch(folder: Path, trackers, start: int, end: int, *, complete: bool = True, killed: bool = False, **changes) -> None:
    """Steps `start` to `end`, with pictures at step 2 and evaluations before the first and after the last one."""
    logs = monitor(folder, start, trackers, **changes)
    if start == 1:
        evaluate(logs, folder, 0)
    for step in range(start, end + 1):
        logs.log(step, {"loss/total": float(step), "optim/lr": 0.1})
        logs.panels(step, [panel(step)] if step == 2 else [])
    if killed:
        drain(logs)
        return
    evaluate(logs, folder, end)
    logs.close(complete=complete)


def drain(logs: Monitor) -> None:
    """Wait until all calls have been made."""
    for one in logs.trackers.deliveries:
        while not one._calls.empty():
            time.sleep(0.005)
        done = threading.Event()
        one._calls.put(done.set)
        assert done.wait(5)
        one.arrived -= 1


def evaluate(logs: Monitor, folder: Path, step: int) -> None:
    write_evaluation(folder, step, trained=step > 0)
    logs.record(step, {"evaluation/val/accuracy/mean": 0.5 + step})
    logs.evaluated(step)


@pytest.fixture
def fakes(monkeypatch):
    return install(monkeypatch)


def test_both_services_get_what_the_run_folder_has(tmp_path, fakes):
    wandb, mlflow = fakes
    launch(tmp_path, ["wandb", "mlflow"], 1, 5)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    wanted = [(line["step"], name, value) for line in lines for name, value in line.items() if name not in ("step", "time")]
    [there] = wandb.runs.values()
    logged = [(step, name, x) for step, values in there.logged for name, x in values.items() if isinstance(x, float)]
    assert logged == wanted and len(wanted) == 5 * 2 + 2
    [run] = mlflow.runs.values()
    assert [(step, name, value) for name, value, step in run.metrics] == wanted

    [init] = wandb.inits
    assert (init["project"], init["name"], init["dir"]) == ("megaunigame", "a run", str(tmp_path))
    assert init["config"] == SETTINGS and there.exit_codes == [0]
    assert mlflow.places == [f"sqlite:///{tmp_path}/mlflow/mlflow.db"] and list(mlflow.experiments) == ["megaunigame"]
    assert run.params == {key: str(value) for key, value in SETTINGS.items()}
    assert (run.name, run.status) == ("a run", "FINISHED")


def test_pictures_and_answers_before_and_after(tmp_path, fakes):
    wandb, mlflow = fakes
    launch(tmp_path, ["wandb", "mlflow"], 1, 5)
    [there], [run] = wandb.runs.values(), mlflow.runs.values()
    shown = {(step, name): x for step, values in there.logged for name, x in values.items() if not isinstance(x, float)}
    assert shown[2, "pictures/Shown"] == [((9, 6), "line 1: source; question: is it ?")]
    first, *_ = shown[5, "pictures/draw"]
    assert first[0] == (3 * 64 + 2 * 4, 64) and "source, through tokenizer, generated; caption: a red cube" in first[1]
    assert shown[0, "texts/recipe"] == "<pre>name: x\n</pre>"
    assert "| before | now |" in shown[5, "texts/val"] and "before" not in shown[0, "texts/val"]
    assert "| what color is the cube 0 ? | red | ✗ purple | ✓ red |" in shown[5, "texts/val"]

    assert run.images["pictures/Shown/line 1/step-00000002.png"] == (9, 6)
    assert "✗ purple | ✓ red" in run.texts["texts/val/step-00000005.md"]
    assert run.texts["recipe-from-step-00000001.yaml"] == "name: x\n"


def test_a_resumed_run_goes_on_in_the_same_run_and_no_step_comes_twice(tmp_path, fakes):
    """Killed after step 4; the checkpoint is of step 2."""
    wandb, mlflow = fakes
    launch(tmp_path, ["wandb", "mlflow"], 1, 4, killed=True)
    launch(tmp_path, ["wandb", "mlflow"], 3, 5, settings={**SETTINGS, "optimizer.lr": 0.5, "new": 1})
    assert [init["id"] for init in wandb.inits] == [wandb.inits[0]["id"]] * 2 and len(mlflow.runs) == 1
    [there], [run] = wandb.runs.values(), mlflow.runs.values()
    steps = [step for step, values in there.logged if "loss/total" in values]
    assert steps == [1, 2, 3, 4, 5] == [step for name, _, step in run.metrics if name == "loss/total"]
    assert (5, 5.5) in [(step, value) for name, value, step in run.metrics if name.startswith("evaluation/")]
    assert run.params["optimizer.lr"] == "0.001" and run.params["new"] == "1"
    assert run.tags == {"from step 3 optimizer.lr": "0.5"}


def test_a_fresh_run_in_the_same_folder_is_another_run(tmp_path, fakes):
    wandb, mlflow = fakes
    launch(tmp_path, ["wandb", "mlflow"], 1, 2)
    launch(tmp_path, ["wandb", "mlflow"], 1, 3)
    assert len(wandb.runs) == len(mlflow.runs) == 2
    assert [step for step, values in list(wandb.runs.values())[1].logged if "loss/total" in values] == [1, 2, 3]


def test_an_interrupted_launch_is_not_a_success(tmp_path, fakes):
    wandb, mlflow = fakes
    launch(tmp_path, ["wandb", "mlflow"], 1, 2, complete=False)
    assert [run.exit_codes for run in wandb.runs.values()] == [[75]]
    assert [run.status for run in mlflow.runs.values()] == ["KILLED"]


def test_only_rank_0_tracks(tmp_path, fakes):
    wandb, mlflow = fakes
    logs = monitor(tmp_path, 1, ["wandb", "mlflow"], rank=1)
    logs.log(1, {"loss/total": 1.0})
    logs.evaluated(1)
    logs.close()
    assert not wandb.inits and not mlflow.runs


@pytest.mark.fault(
    "a tracker (W&B, MLflow) fails in the middle of a run", does="says why once, goes on, and counts at the end", lost=""
)
def test_a_tracker_that_fails_is_said_once_and_counted(tmp_path, fakes, caplog, capsys):
    wandb, mlflow = fakes
    logs = monitor(tmp_path, 1, ["wandb", "mlflow"])
    for step in range(1, 6):
        logs.log(step, {"loss/total": float(step)})
        drain(logs)
        wandb.fails = step in (2, 3)
    logs.close()
    said = [record.getMessage() for record in caplog.records]
    assert said == ["wandb fails: ConnectionError: no route to host. The run goes on; all metrics are in metrics.jsonl."]
    assert "wandb: 2 of 6 updates did not arrive (ConnectionError: no route to host)." in capsys.readouterr().out
    [there] = wandb.runs.values()
    assert [step for step, _ in there.logged] == [0, 1, 2, 5]
    assert [step for run in mlflow.runs.values() for *_, step in run.metrics] == [1, 2, 3, 4, 5]


@pytest.mark.fault("a tracker cannot begin: no login, no server", does="says why, and goes on without it", lost="")
def test_a_tracker_that_cannot_begin(tmp_path, fakes, caplog, capsys):
    wandb, _ = fakes
    wandb.init = lambda **_: (_ for _ in ()).throw(RuntimeError("no API key\nlog in first"))
    launch(tmp_path, ["wandb"], 1, 3)
    assert "wandb fails: RuntimeError: no API key log in first." in caplog.text and len(caplog.records) == 1
    assert "wandb: 11 of 11 updates did not arrive" in capsys.readouterr().out


@pytest.mark.fault("a tracker does not answer", does="no step waits for it; at the end it is left", lost="")
@pytest.mark.parametrize("complete", [True, False])
def test_a_tracker_that_does_not_answer_delays_no_step(tmp_path, fakes, caplog, capsys, monkeypatch, complete):
    wandb, _ = fakes
    monkeypatch.setattr(delivery, "CLOSE_SECONDS" if complete else "INTERRUPTED_SECONDS", 0.2)
    logs = monitor(tmp_path, 1, ["wandb"])
    answered = threading.Event()
    logs.trackers.deliveries[0].call(answered.wait)
    began = time.monotonic()
    logs.log(1, {"loss/total": 1.0})
    assert time.monotonic() - began < 0.15
    logs.close(complete=complete)
    answered.set()
    out = capsys.readouterr().out
    assert "wandb: 3 of 3 updates did not arrive (no answer within 0.2 s at the end)" in out and "no answer" in caplog.text


def test_more_calls_than_may_wait_are_dropped_and_counted(tmp_path, fakes, caplog, capsys, monkeypatch):
    monkeypatch.setattr(delivery, "WAITING", 2)
    logs = monitor(tmp_path, 1, ["wandb"])
    busy, answered = threading.Event(), threading.Event()
    logs.trackers.deliveries[0].call(lambda: (busy.set(), answered.wait()))
    busy.wait()
    for step in range(1, 6):
        logs.log(step, {"loss/total": 1.0})
    answered.set()
    drain(logs)
    logs.close()
    assert "wandb: 3 of 7 updates did not arrive (2 calls wait for it)" in capsys.readouterr().out


def test_ids_that_are_damaged_begin_new_runs(tmp_path, fakes, caplog):
    wandb, _ = fakes
    launch(tmp_path, ["wandb"], 1, 2)
    (tmp_path / "trackers.json").write_text("[")
    launch(tmp_path, ["wandb"], 3, 4)
    assert len(wandb.runs) == 2 and "They begin new runs." in caplog.text


@pytest.mark.fault("the TensorBoard folder cannot be written", does="says so and goes on without", lost="TensorBoard only")
def test_a_run_goes_on_without_tensorboard(tmp_path, caplog, capsys):
    (tmp_path / "tensorboard").write_text("a file")
    logs = monitor(tmp_path, 1, ["tensorboard"])
    logs.log(1, {"loss/a": 1.0})
    logs.close()
    assert "tensorboard fails: FileExistsError" in caplog.text and logs.failed is None
    assert "tensorboard: 2 of 2 updates did not arrive" in capsys.readouterr().out
    assert (tmp_path / "metrics.jsonl").read_text().count('"loss/a": 1.0') == 1


def test_tensorboard_has_pictures_texts_and_settings(tmp_path):
    launch(tmp_path, ["tensorboard"], 1, 4)
    launch(tmp_path, ["tensorboard"], 3, 5)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/total")] == [1, 2, 3, 4, 5]
    [image] = events.Images("Shown/line 1")
    assert (image.step, image.width, image.height) == (2, 9, 6)
    assert [event.step for event in events.Images("draw/sample 0")] == [0, 5]
    texts = {tag: [t.tensor_proto.string_val[0].decode() for t in events.Tensors(tag)] for tag in events.Tags()["tensors"]}
    assert "✗ purple | ✓ red" in texts["val/text_summary"][-1] and "    name: x" in texts["recipe/text_summary"][0]
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["optimizer.lr"].number_value == 0.001 and settings["name"].string_value == "x"
    content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    metrics = plugin_data_pb2.HParamsPluginData.FromString(content).experiment.metric_infos
    assert {metric.name.tag for metric in metrics} == {"loss/total", "evaluation/val/accuracy/mean"}
    assert {metric.name.tag for metric in metrics} <= set(events.Tags()["scalars"])


def test_settings_of_a_recipe(tmp_path):
    assert load_recipe(TINY, []).monitor.trackers == ["tensorboard"]
    assert load_recipe(TINY, ["monitor.trackers=[wandb, mlflow]"]).monitor.trackers == ["wandb", "mlflow"]
    with pytest.raises(ConfigError) as error:
        load_recipe(TINY, ["monitor.tensorboard=false"])
    assert str(error.value) == (
        "monitor.tensorboard is not a setting: type monitor.trackers=[] (none) or monitor.trackers=[tensorboard] instead."
    )
    with pytest.raises(ConfigError, match=r"names wandb twice. Type monitor.trackers=\[wandb,mlflow\]"):
        load_recipe(TINY, ["monitor.trackers=[wandb,mlflow,wandb]"])


def test_an_unknown_tracker_and_a_missing_package(monkeypatch):
    check_trackers(["tensorboard"])
    with pytest.raises(ConfigError, match="Did you mean 'wandb'\\? Legal: mlflow, tensorboard, wandb"):
        check_trackers(["wandbb"])
    for name in ("wandb", "mlflow"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
        with pytest.raises(ConfigError, match=rf"{name} is not installed. Type pip install 'megaunigame\[trackers\]'"):
            check_trackers([name])
        monkeypatch.undo()
