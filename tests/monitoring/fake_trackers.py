"""Modules in place of wandb and mlflow that record their calls, as far as the trackers use them."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any


class FakeWandb(ModuleType):
    """Runs by their id, each with what was logged: (step, values)."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = SimpleNamespace(name="wandb")  # importlib.util.find_spec asks for it
        self.runs: dict[str, SimpleNamespace] = {}
        self.inits: list[dict[str, Any]] = []
        self.Settings = SimpleNamespace
        self.fails = False

    def Image(self, image: Any, caption: str) -> tuple[Any, str]:
        return (image.size, caption)

    def Html(self, text: str) -> str:
        return text

    def init(self, **given: Any) -> SimpleNamespace:
        self.inits.append(given)
        run = self.runs.setdefault(given["id"], SimpleNamespace(logged=[], exit_codes=[]))

        def log(values: dict[str, Any], step: int) -> None:
            if self.fails:
                raise ConnectionError("no route to host")
            run.logged.append((step, values))

        return SimpleNamespace(log=log, finish=lambda exit_code: run.exit_codes.append(exit_code))


class FakeMlflow(ModuleType):
    """One store; parameters never change, as in MLflow."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.__spec__ = SimpleNamespace(name="mlflow")
        self.entities = ModuleType("mlflow.entities")
        self.entities.Param = lambda key, value: (key, value)
        self.entities.Metric = lambda key, value, timestamp, step: (key, value, step)
        self.tracking = ModuleType("mlflow.tracking")
        self.tracking.MlflowClient = self.client
        self.places: list[str] = []
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, SimpleNamespace] = {}

    def client(self, place: str) -> SimpleNamespace:
        self.places.append(place)
        names = ("create_experiment", "create_run", "update_run", "get_run", "log_batch", "set_tag", "log_text", "log_image")
        methods = {name: getattr(self, name) for name in (*names, "get_experiment_by_name", "set_terminated")}
        return SimpleNamespace(**methods)

    def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str, artifact_location: str | None) -> str:
        return self.experiments.setdefault(name, str(len(self.experiments)))

    def create_run(self, experiment: str, run_name: str | None) -> SimpleNamespace:
        id = f"run{len(self.runs)}"
        self.runs[id] = SimpleNamespace(name=run_name, params={}, metrics=[], tags={}, texts={}, images={}, status="RUNNING")
        return SimpleNamespace(info=SimpleNamespace(run_id=id))

    def update_run(self, id: str, status: str) -> None:
        self.runs[id].status = status

    def get_run(self, id: str) -> SimpleNamespace:
        return SimpleNamespace(data=SimpleNamespace(params=dict(self.runs[id].params)))

    def log_batch(self, id: str, metrics: Any = (), params: Any = ()) -> None:
        assert len(metrics) <= 1000 and len(params) <= 100
        for key, value in params:
            assert self.runs[id].params.setdefault(key, value) == value, "a parameter was changed"
        self.runs[id].metrics += metrics

    def set_tag(self, id: str, key: str, value: str) -> None:
        self.runs[id].tags[key] = value

    def log_text(self, id: str, text: str, file: str) -> None:
        self.runs[id].texts[file] = text

    def log_image(self, id: str, image: Any, file: str) -> None:
        self.runs[id].images[file] = image.size

    def set_terminated(self, id: str, status: str) -> None:
        self.runs[id].status = status


def install(monkeypatch: Any) -> tuple[FakeWandb, FakeMlflow]:
    """Both in place of the real ones."""
    wandb, mlflow = FakeWandb(), FakeMlflow()
    named = {"wandb": wandb, "mlflow": mlflow, "mlflow.entities": mlflow.entities, "mlflow.tracking": mlflow.tracking}
    for name, module in named.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return wandb, mlflow
