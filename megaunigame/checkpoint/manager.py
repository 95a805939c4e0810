"""Step folders that are either complete or do not exist.

    <run>/checkpoints/step-00000500/   files of the learner and of players, train_state.json, manifest.json
    <run>/checkpoints/latest           name of the newest complete folder

A save writes into `saving-step-...`, rank 0 checks and lists the files in manifest.json, renames the folder, and only then
moves `latest`. Resuming trusts a folder
only if every file of its manifest has its recorded size.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaunigame.checkpoint import learner_files
from megaunigame.checkpoint.saved_learner import FILE, SavedLearner
from megaunigame.engine.zero3 import Learner
from megaunigame.errors import CheckpointError
from megaunigame.parallel.ranks import Ranks

MANIFEST, LATEST, TRAIN_STATE = "manifest.json", "latest", "train_state.json"


@dataclass(frozen=True)
class Manifest:
    step: int
    world_size: int
    model: str
    """Signature of the trained parameters: names and shapes."""
    files: dict[str, int]
    """File name within the folder -> bytes."""


class CheckpointManager:
    """Saves, finds, checks and prunes the step folders of one run."""

    def __init__(self, run_folder: Path, keep: int, world: Ranks):
        self.folder = run_folder / "checkpoints"
        self.keep = keep
        self.world = world

    def save(
        self, learner: Learner, train_state: dict[str, Any], step: int, others: Sequence[Callable[[Path], None]] = ()
    ) -> Path:
        """Collective: write the folder of `step`; returns its path. A crash at any moment leaves the older ones intact.

        `others`: called on every rank with the folder, to write more files into it. Raises CheckpointError when this rank
        cannot write, because the disk is full for example.
        """
        try:
            return self._save(learner, train_state, step, others)
        except OSError as error:
            raise CheckpointError(self._not_written(step, error)) from error

    def _not_written(self, step: int, error: Exception) -> str:
        free = shutil.disk_usage(self.folder).free
        kept = (self.folder / LATEST).read_text().strip() if (self.folder / LATEST).is_file() else "none"
        return (
            f"The checkpoint of step {step} could not be written to {self.folder} ({str(error).splitlines()[0]}); "
            f"{free:,} bytes are free there. The newest complete checkpoint: {kept}. Make room (checkpoint.keep={self.keep}), "
            "then give the same command again: it goes on from there."
        )

    def _save(self, learner: Learner, train_state: dict[str, Any], step: int, others: Sequence[Callable[[Path], None]]) -> Path:
        name = f"step-{step:08d}"
        partial, final = self.folder / f"saving-{name}", self.folder / name
        if self.world.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in (*self.folder.glob("saving-*"), *self.folder.glob("deleting-*")):
                shutil.rmtree(leftover)
            partial.mkdir()
        self.world.barrier()
        for file in learner_files.pending_files(learner):
            file.write(partial)
        for write in others:
            write(partial)
        self.world.barrier()
        if self.world.is_main:
            missing = [rank for rank in range(self.world.size) if not (partial / FILE.format(rank)).is_file()]
            if missing:
                raise CheckpointError(
                    f"{partial} has the files of {self.world.size - len(missing)} of {self.world.size} ranks. All nodes must "
                    "write to one shared file system: give such a folder in `output`."
                )
            (partial / TRAIN_STATE).write_text(json.dumps(train_state, indent=1))
            files = {p.name: p.stat().st_size for p in sorted(partial.iterdir())}
            manifest = Manifest(step, self.world.size, learner_files.signature(learner), files)
            (partial / MANIFEST).write_text(json.dumps(manifest.__dict__, indent=1))
            for path in partial.iterdir():
                _flush(path)
            self._delete(final)
            os.replace(partial, final)
            self._point_to(name)
            self._prune()
        self.world.barrier()
        return final

    def find(self, resume: str) -> Path | None:
        """Collective: the folder to resume from, checked, or None for a fresh start. `resume` as in CheckpointConfig.

        Rank 0 decides for all: nodes may see different states of a shared folder. Raises CheckpointError on every rank when
        the folder is truncated or is not a checkpoint. It may be one of any number of ranks.
        """
        answer: Path | CheckpointError | None = None
        if self.world.is_main:
            try:
                answer = self._look(resume)
            except CheckpointError as error:
                answer = error
        answer = self.world.all_gather_object(answer)[0]
        if isinstance(answer, CheckpointError):
            raise answer
        return answer

    def _look(self, resume: str) -> Path | None:
        if resume == "never":
            return None
        if resume == "auto":
            pointer = self.folder / LATEST
            if not pointer.is_file():
                return None
            folder = self.folder / pointer.read_text().strip()
        else:
            folder = Path(resume)
        read_manifest(folder)
        SavedLearner(folder)  # refuses the files of other versions, before the model is loaded
        return folder

    def train_state(self, folder: Path) -> dict[str, Any]:
        """The `train_state` given to `save`, from a folder that `find` has checked."""
        return json.loads((folder / TRAIN_STATE).read_text())

    def load(self, learner: Learner, folder: Path) -> None:
        """Collective: restore weights and optimizer. Raises CheckpointError when the checkpoint trained other parameters."""
        learner_files.load(learner, folder)

    def _point_to(self, name: str) -> None:
        temporary = self.folder / f"{LATEST}.tmp"
        temporary.write_text(name)
        _flush(temporary)
        os.replace(temporary, self.folder / LATEST)

    def _prune(self) -> None:
        # By age, not by step: a run that went back to an older step must not lose what it writes next.
        by_age = sorted(self.folder.glob("step-*"), key=lambda step: (step / MANIFEST).stat().st_mtime_ns)
        for old in by_age[: -self.keep]:
            self._delete(old)

    def _delete(self, step: Path) -> None:
        """Renames first: an interrupted deletion must not leave half a step folder."""
        if step.exists():
            doomed = step.rename(self.folder / f"deleting-{step.name}")
            shutil.rmtree(doomed)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a step folder, after checking every file it lists.

    Raises CheckpointError naming the file that is missing or truncated.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is not a complete checkpoint (no {MANIFEST}). Give a step-... folder in checkpoint.resume, or `auto`."
        )
    manifest = Manifest(**json.loads(path.read_text()))
    for name, size in manifest.files.items():
        got = (folder / name).stat().st_size if (folder / name).is_file() else None
        if got != size:
            found = "is missing" if got is None else f"has {got} bytes"
            raise CheckpointError(
                f"Checkpoint {folder} is damaged: {name} {found}, its manifest says {size}. Delete the folder and resume from "
                "an older one: checkpoint.resume=PATH/step-..., or checkpoint.resume=never."
            )
    return manifest


def _flush(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
