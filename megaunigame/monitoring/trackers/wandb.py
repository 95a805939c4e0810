"""Weights & Biases. Its environment variables count: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline (then `wandb sync` sends
the folder `wandb` of the run)."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from megaunigame.errors import Interrupted
from megaunigame.monitoring.trackers.base import RunFacts, TrackedPicture, Tracker

PROJECT = "megaunigame"


class WeightsAndBiases(Tracker):
    package = "wandb"

    def __init__(self, folder: Path, run: RunFacts, first_step: int):
        super().__init__(folder, run, first_step)
        import wandb

        self.wandb = wandb

    def start(self, earlier: str) -> str:
        id = earlier or uuid.uuid4().hex[:8]
        self.session = self.wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=self.run.name,
            id=id,
            resume="allow",
            dir=str(self.folder),
            config=dict(self.run.settings),
            # The lines of the console stay ours, and a killed launch is not asked about on a terminal.
            settings=self.wandb.Settings(console="off", silent=True),
        )
        if not earlier:
            self.text(self.first_step - 1, "recipe", self.run.recipe)
        return id

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.session.log(dict(values), step=step)

    def pictures(self, step: int, pictures: Sequence[TrackedPicture]) -> None:
        by_group: dict[str, list[object]] = {}
        for picture in pictures:
            shown = self.wandb.Image(picture.image, caption=f"{picture.line}: {picture.caption}")
            by_group.setdefault(f"pictures/{picture.group}", []).append(shown)
        self.session.log(by_group, step=step)

    def text(self, step: int, name: str, markdown: str) -> None:
        self.session.log({f"texts/{name}": self.wandb.Html(f"<pre>{escape(markdown)}</pre>")}, step=step)

    def close(self, complete: bool) -> None:
        self.session.finish(exit_code=0 if complete else Interrupted.exit_code)
