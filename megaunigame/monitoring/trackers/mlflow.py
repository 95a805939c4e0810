"""MLflow. MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME count; without the first, all is in the folder `mlflow` of the run: a
database of one file, since MLflow gives up its store of plain files, and the pictures and texts next to it."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

from megaunigame.monitoring.trackers.base import RunFacts, TrackedPicture, Tracker

EXPERIMENT, FOLDER, DATABASE = "megaunigame", "mlflow", "mlflow.db"
BATCH = 100
"""Parameters in one request; of metrics MLflow takes 1,000."""
LONGEST = 500
"""Characters of a parameter that every version of a server takes."""
NOT_IN_NAMES = re.compile(r"[^\w\-. /]")
T = TypeVar("T")


class MLflow(Tracker):
    package = "mlflow"

    def __init__(self, folder: Path, run: RunFacts, first_step: int):
        super().__init__(folder, run, first_step)
        from mlflow import entities
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of each table that it makes
        self.entities = entities
        place, self.pictures_at = os.environ.get("MLFLOW_TRACKING_URI"), None
        if not place:
            home = (folder / FOLDER).absolute()
            home.mkdir(exist_ok=True)
            place, self.pictures_at = f"sqlite:///{home / DATABASE}", (home / "artifacts").as_uri()
        self.client = MlflowClient(place)

    def start(self, earlier: str) -> str:
        self.id = earlier or self._created()
        self.client.update_run(self.id, status="RUNNING")
        self._settings(self.client.get_run(self.id).data.params)
        self.client.log_text(self.id, self.run.recipe, f"recipe-from-step-{self.first_step:08d}.yaml")
        return self.id

    def _created(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        experiment = self.client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self.client.create_experiment(name, self.pictures_at)
        return self.client.create_run(number, run_name=self.run.name or None).info.run_id

    def _settings(self, known: Mapping[str, str]) -> None:
        """A parameter of MLflow never changes: what another launch has changed is a tag."""
        texts = {_name(key): str(value)[:LONGEST] for key, value in self.run.settings.items()}
        fresh = [self.entities.Param(key, text) for key, text in texts.items() if key not in known]
        for batch in _batches(fresh, BATCH):
            self.client.log_batch(self.id, params=batch)
        for key, text in texts.items():
            if key in known and known[key] != text:
                self.client.set_tag(self.id, f"from step {self.first_step} {key}", text)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now = round(1000 * time.time())
        metrics = [self.entities.Metric(_name(name), value, now, step) for name, value in values.items()]
        for batch in _batches(metrics, BATCH):
            self.client.log_batch(self.id, metrics=batch)

    def pictures(self, step: int, pictures: Sequence[TrackedPicture]) -> None:
        for picture in pictures:
            file = f"pictures/{_name(picture.group)}/{_name(picture.line)}/step-{step:08d}"
            self.client.log_image(self.id, picture.image, f"{file}.png")
            self.client.log_text(self.id, picture.caption, f"{file}.txt")

    def text(self, step: int, name: str, markdown: str) -> None:
        self.client.log_text(self.id, markdown, f"texts/{_name(name)}/step-{step:08d}.md")

    def close(self, complete: bool) -> None:
        self.client.set_terminated(self.id, "FINISHED" if complete else "KILLED")


def _name(text: str) -> str:
    """A legal name of a metric, a parameter or a folder."""
    return NOT_IN_NAMES.sub("_", text)


def _batches(items: Sequence[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
