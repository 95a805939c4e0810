"""TensorBoard: event files in the `tensorboard` folder of a run. `tensorboard --logdir runs`"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megaunigame.monitoring import names
from megaunigame.monitoring.trackers.base import RunFacts, TrackedPicture, Tracker

FOLDER = "tensorboard"
FLUSH_SECONDS = 10
"""What a killed launch loses, at most."""


class TensorBoard(Tracker):
    package = "tensorboard"
    forgets = True

    def __init__(self, folder: Path, run: RunFacts, first_step: int):
        super().__init__(folder, run, first_step)
        # Imported here: it takes seconds, and only rank 0 needs it.
        from torch.utils.tensorboard import SummaryWriter

        self.writer_class = SummaryWriter
        self.seen: set[str] = set()
        """Names of the metrics that say how the run went."""

    def start(self, earlier: str) -> str:
        self.writer = self.writer_class(str(self.folder / FOLDER), purge_step=self.first_step, flush_secs=FLUSH_SECONDS)
        # A text of four blanks is code.
        self.text(self.first_step, "recipe", "\n".join(f"    {line}" for line in self.run.recipe.splitlines()))
        return FOLDER

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.seen |= {name for name in values if name.startswith((names.LOSS, names.EVALUATION))}

    def pictures(self, step: int, pictures: Sequence[TrackedPicture]) -> None:
        for picture in pictures:
            pixels = np.asarray(picture.image)
            self.writer.add_image(f"{picture.group}/{picture.line}", pixels, step, dataformats="HWC")
            self.writer.add_text(f"{picture.group}/{picture.line}", picture.caption, step)

    def text(self, step: int, name: str, markdown: str) -> None:
        self.writer.add_text(name, markdown, step)

    def close(self, complete: bool) -> None:
        self._settings_with_metrics()
        self.writer.close()

    def _settings_with_metrics(self) -> None:
        """The HPARAMS page: settings of runs next to the last value of their losses and evaluations.

        Not `add_hparams`: it writes every metric a second time, into a run of its own.
        """
        from torch.utils.tensorboard.summary import hparams

        events: Any = self.writer.file_writer  # typed as None, which it is after close()
        plain = {key: value for key, value in self.run.settings.items() if isinstance(value, bool | int | float | str)}
        for summary in hparams(plain, dict.fromkeys(sorted(self.seen), 0.0)):
            events.add_summary(summary)
