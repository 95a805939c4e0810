"""Finds, checks and loads the checkpoints of one run; saves them as `Saver` does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from megaunigame.checkpoint import learner_files, step_folders
from megaunigame.checkpoint.agreement import on_main
from megaunigame.checkpoint.contents import check_everywhere
from megaunigame.checkpoint.manifest import REMEDY, Manifest, read_manifest
from megaunigame.checkpoint.runs import read_train_state
from megaunigame.checkpoint.saved_learner import SavedLearner
from megaunigame.checkpoint.saver import Saver
from megaunigame.engine.zero3 import Learner
from megaunigame.errors import CheckpointError
from megaunigame.storage.disk_errors import free_bytes, in_words

log = logging.getLogger(__name__)
T = TypeVar("T")


class CheckpointManager(Saver):
    """The checkpoints of one run. Every method is a collective."""

    def check_room(self, bytes_each: int) -> None:
        """Compare the free disk with what the checkpoints of the run will need; `bytes_each`: an estimate of one.

        Raises CheckpointError when not even one has room; a warning says when `keep` and the one being written have not.
        """
        on_main(self.world, lambda: self._readable(lambda: self._check_room(bytes_each)))

    def _check_room(self, bytes_each: int) -> None:
        free = free_bytes(self.folder)
        there = sum(1 for _ in step_folders.complete(self.folder))
        wanted = max(1, self.keep + 1 - there) * bytes_each
        if free < bytes_each:
            raise CheckpointError(
                f"output: {self.folder} has {free:,} bytes free, and a checkpoint of this run needs about {bytes_each:,}. Make "
                "room there, or give another `output`."
            )
        if free < wanted:
            log.warning(
                "%s has %s bytes free; checkpoint.keep=%d needs about %s more (one is written before the oldest is deleted). "
                "Make room, or lower checkpoint.keep.",
                self.folder,
                f"{free:,}",
                self.keep,
                f"{wanted:,}",
            )

    def clear_leftovers(self) -> None:
        """Delete what a killed save has left. Only for a process that holds the run folder alone."""
        on_main(self.world, lambda: self._readable(lambda: step_folders.clear_leftovers(self.folder)))

    # Resuming

    def find(self, resume: str) -> Path | None:
        """The folder to resume from, with every file checked, or None for a fresh start. `resume` as in CheckpointConfig.

        Rank 0 decides for all: nodes may see different states of a shared folder. Raises CheckpointError on every rank when
        the folder is damaged or is not a checkpoint. It may be one of any number of ranks.
        """
        found = on_main(self.world, lambda: self._readable(lambda: self._look(resume)))
        if found is None:
            return None
        folder, manifest, remedy = found
        check_everywhere(folder, manifest, self.world, remedy)
        on_main(self.world, lambda: self._check_version(folder))
        return folder

    def _check_version(self, folder: Path) -> None:
        """Refuse the files of other versions before the model is loaded."""
        SavedLearner(folder)

    def _look(self, resume: str) -> tuple[Path, Manifest, str] | None:
        """The folder, its manifest, and what to type when its content is damaged."""
        if resume == "never":
            return None
        if resume == "auto":
            found = step_folders.newest(self.folder)
            if found is None:
                return None
            folder, manifest = found
        else:
            folder = Path(resume)
            try:
                manifest = read_manifest(folder)
            except CheckpointError as error:
                raise CheckpointError(f"{error} {self._older(folder)}") from error
        return folder, manifest, f"{REMEDY} {self._older(folder)}"

    def _older(self, damaged: Path) -> str:
        """What else there is to resume from."""
        parent = damaged.absolute().parent
        good = next((folder for folder, _ in step_folders.complete(parent) if folder.name != damaged.name), None)
        return f"No other checkpoint in {parent} is complete." if good is None else f"Type checkpoint.resume={good}."

    def train_state(self, folder: Path) -> dict[str, Any]:
        """The `train_state` given to `save`, from a folder that `find` has checked. Rank 0 reads it for all."""
        return on_main(self.world, lambda: read_train_state(folder))

    def load(self, learner: Learner, folder: Path) -> None:
        """Restore weights and optimizer. Raises CheckpointError when the checkpoint trained other parameters."""
        learner_files.load(learner, folder)

    def _readable(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except OSError as error:
            problem = f"The checkpoints in {self.folder} cannot be used: {in_words(error, self.folder)}."
            raise CheckpointError(problem) from error
