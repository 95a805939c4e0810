"""Finds, checks and loads the checkpoints of one run; saves them as `Saver` does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from megaunigame.checkpoint import learner_files, step_folders
from megaunigame.checkpoint.agreement import on_main
from megaunigame.checkpoint.contents import check_everywhere
from megaunigame.checkpoint.manifest import Manifest, described, read_manifest
from megaunigame.checkpoint.runs import read_train_state
from megaunigame.checkpoint.saved_learner import SavedLearner
from megaunigame.checkpoint.saver import Saver
from megaunigame.checkpoint.typed_paths import same_place
from megaunigame.checkpoint.unreadable import reading
from megaunigame.config import AUTO, NEVER
from megaunigame.engine.zero3 import Learner
from megaunigame.errors import CheckpointError, TransientCheckpointError
from megaunigame.storage.disk_errors import free_bytes

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
        kept = self.keep + self.keeps_best
        wanted = max(1, kept + 1 - there) * bytes_each
        if free < bytes_each:
            raise CheckpointError(
                f"output: {self.folder} has {free:,} bytes free, and a checkpoint of this run needs about {bytes_each:,}. Make "
                "room there, or give another `output`."
            )
        if free < wanted:
            log.warning(
                "%s has %s bytes free; checkpoint.keep=%d%s needs about %s more (one is written before the oldest is deleted). "
                "Make room, or lower checkpoint.keep.",
                self.folder,
                f"{free:,}",
                self.keep,
                " and the best one (checkpoint.best)" if self.keeps_best else "",
                f"{wanted:,}",
            )

    def clear_leftovers(self) -> None:
        """Delete what a killed save has left. Only for a process that holds the run folder alone."""
        on_main(self.world, lambda: self._readable(lambda: step_folders.clear_leftovers(self.folder)))

    # Resuming

    def find(self, resume: str, *, once: bool = True) -> Path | None:
        """The folder to resume from, with every file checked, or None for a fresh start. `resume` as in CheckpointConfig.

        `once`: what a launch with the same `resume` has saved is gone on from; without it, `resume` is taken at its word.
        Rank 0 decides for all: nodes may see different states of a shared folder. Raises CheckpointError on every rank when
        the folder is damaged or is not a checkpoint. It may be one of any number of ranks.
        """
        found = on_main(self.world, lambda: self._readable(lambda: self._look(resume, once)))
        if found is None:
            return None
        folder, manifest, remedy = found
        check_everywhere(folder, manifest, self.world, remedy)
        on_main(self.world, lambda: self._check_version(folder))
        return folder

    def _check_version(self, folder: Path) -> None:
        """Refuse the files of other versions before the model is loaded."""
        SavedLearner(folder)

    def _look(self, resume: str, once: bool) -> tuple[Path, Manifest, str] | None:
        """The folder, its manifest, and what to type when its content is damaged."""
        if resume == AUTO:
            found = step_folders.newest(self.folder)
            return None if found is None else (*found, _older(found[0]))
        done = self._done(resume) if once else None
        if done is not None:
            return *done, f"Delete {done[0]}, then give the same command again."
        if resume == NEVER:
            return None
        folder = Path(resume)
        return folder, read_manifest(folder, remedy=_older(folder)), _older(folder)

    def _done(self, resume: str) -> tuple[Path, Manifest] | None:
        """The checkpoint saved last, if the launch that saved it had the same `checkpoint.resume`."""
        last = next(step_folders.complete(self.folder), None)
        try:
            return last if last is not None and same_place(read_train_state(last[0]).get("resume", ""), resume) else None
        except TransientCheckpointError:
            raise
        except CheckpointError:
            return None  # damaged: that may be why another step is named

    def of_the_same_command(self, resume: str) -> str:
        """The step folder that the same command would go on from now, as this rank sees the folder; empty: it begins at step 1.

        Not a collective, and nothing is checked. When the file system does not tell: the folder of all steps.
        """
        try:
            return self._same_command(resume)
        except (OSError, TransientCheckpointError) as error:  # the run is ending, and this line is not the reason
            log.warning("The checkpoint that the same command goes on from is not known: %s", error)
            return str(self.folder)

    def _same_command(self, resume: str) -> str:
        last = next(step_folders.complete(self.folder), None) if resume == AUTO else self._done(resume)
        if last is not None:
            return str(last[0])
        return "" if resume in (AUTO, NEVER) else resume

    def train_state(self, folder: Path) -> dict[str, Any]:
        """The `train_state` given to `save`, from a folder that `find` has checked. Rank 0 reads it for all."""
        return on_main(self.world, lambda: read_train_state(folder))

    def load(self, learner: Learner, folder: Path) -> None:
        """Restore weights and optimizer. Raises CheckpointError when the checkpoint trained other parameters."""
        learner_files.load(learner, folder)

    def _readable(self, work: Callable[[], T]) -> T:
        with reading(self.folder):
            return work()


def _older(damaged: Path) -> str:
    """What to type instead of a damaged folder."""
    parent = damaged.absolute().parent
    others = [folder for folder, _ in step_folders.complete(parent) if folder.name != damaged.name]
    before = [folder for folder in others if _is_older(folder, damaged)]
    if before:
        return f"Type checkpoint.resume={before[0]}, which was saved before it."
    if others:
        return f"Type checkpoint.resume={others[0]}, which was saved after it."
    return f"No other checkpoint in {parent} is complete: give another `output`, or delete {parent} to start again at step 1."


def _is_older(folder: Path, damaged: Path) -> bool:
    """By the saves that the manifests count, or by the steps where one cannot be read."""
    try:
        return described(folder).saves < described(damaged).saves
    except CheckpointError:
        return folder.name < damaged.name
