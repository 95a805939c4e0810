"""Saves checkpoints while training goes on (folders: step_folders.py, their content: manifest.py).

A save copies the state to host memory, which is the pause of the training; a thread of each rank then writes and flushes its
files into `saving-step-...`, while the steps go on. Each step asks by one tiny all-reduce whether all ranks have written. Then
rank 0 gets the name, size and hash of every file from the rank that wrote it, looks whether it sees them all, writes the
manifest, renames the folder, moves `latest`, and deletes old checkpoints, while the ranks wait. It asks for each reported file
by name, and does not list the new folder: network file systems show new names late.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from megaunigame.checkpoint import learner_files, step_folders
from megaunigame.checkpoint.agreement import on_main
from megaunigame.checkpoint.host_memory import is_of_an_allocator
from megaunigame.checkpoint.manifest import TRAIN_STATE, Manifest
from megaunigame.checkpoint.waiting import wait_for_all
from megaunigame.engine.zero3 import Learner
from megaunigame.errors import CheckpointError, TransientCheckpointError
from megaunigame.parallel.ranks import Ranks
from megaunigame.storage.background import BackgroundWriting
from megaunigame.storage.disk_errors import free_bytes, in_words, may_pass
from megaunigame.storage.pending import PendingFile, WrittenFile

PATIENCE_SECONDS = 30.0
"""How long rank 0 waits for the file of another node to appear."""
log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is complete."""

    step: int
    bytes: int
    """Of all ranks."""
    seconds: float
    """From the beginning of the save until it was complete."""
    paused: float
    """Seconds of these in which rank 0 did not train."""

    def __str__(self) -> str:
        size = f"{self.bytes / 1e9:.1f} GB" if self.bytes >= 1e8 else f"{self.bytes / 1e6:.1f} MB"
        return f"saved step {self.step} in {self.seconds:.1f} s ({size}, training paused {self.paused:.1f} s)"


@dataclass
class _Attempt:
    """A save whose files are being written."""

    step: int
    model: str
    folder: Path
    writing: BackgroundWriting
    began: float
    paused: float


class Saver:
    """Writes the checkpoints of one run. Every method but `taken` is a collective."""

    def __init__(self, run_folder: Path, keep: int, world: Ranks, check_held: Callable[[], None] = lambda: None):
        """`check_held`: called on rank 0 before it changes the folder. It raises a UserError, on every rank then, when another
        run has taken the folder; nothing in it is touched any more."""
        self.folder, self.check_held = run_folder / "checkpoints", check_held
        self.keep, self.keeps_best = keep, False
        """Checkpoints that are kept: the newest, and whether the best one too."""
        self.world = world
        self._attempt: _Attempt | None = None
        self._saved: list[Saved] = []

    def begin(
        self, learner: Learner, train_state: dict[str, Any], step: int, others: Sequence[Callable[[], list[PendingFile]]] = ()
    ) -> None:
        """Copy the state of `step` and begin to write it; a save that is still being written is completed first.

        `others`: called on every rank, for more files. Raises CheckpointError on every rank when one of them has no memory for
        the copies, or when the disk has no room. A warning says when the save before failed.
        """
        try:
            self.wait()
        except CheckpointError as error:  # on every rank; this save may be the last one of a run that is asked to end
            if self.world.is_main:
                log.warning("%s Step %d is saved now.", error, step)
        began = time.perf_counter()
        files, problem = self._copies(learner, train_state, others)
        plans = self.world.gather_object(({file.name: file.bytes for file in files}, problem))
        partial = self.folder / self._on_main(lambda: self._make_room(step, plans), step)
        model, writing = learner_files.signature(learner), BackgroundWriting(files, partial)
        self._attempt = _Attempt(step, model, partial, writing, began, time.perf_counter() - began)

    def _copies(
        self, learner: Learner, train_state: dict[str, Any], others: Sequence[Callable[[], list[PendingFile]]]
    ) -> tuple[list[PendingFile], str]:
        """This rank's files, and what kept it from making them."""
        try:
            files = [*learner_files.pending_files(learner), *(file for pending in others for file in pending())]
        except (MemoryError, RuntimeError) as error:
            if not is_of_an_allocator(error):
                raise  # a broken device, say: neither room nor another try would help
            return [], f"no copy of the state could be made: {type(error).__name__}: {str(error).splitlines()[0]}"
        if self.world.is_main:
            files.append(PendingFile(TRAIN_STATE, content=json.dumps(train_state, indent=1).encode()))
        return files, ""

    def _make_room(self, step: int, plans: list[tuple[dict[str, int], str]]) -> str:
        """On rank 0: the name of the folder for the files. `plans`: per rank the size of each of them, and its problem."""
        self.check_held()
        self._raise_problems(step, [(problem, False) for _, problem in plans])
        names = [name for sizes, _ in plans for name in sizes]
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        if twice:
            raise self._failed(step, f"several ranks want to write {', '.join(twice[:3])}")
        self.folder.mkdir(parents=True, exist_ok=True)
        step_folders.clear_leftovers(self.folder)
        needed, free = sum(sum(sizes.values()) for sizes, _ in plans), free_bytes(self.folder)
        if free < needed:
            raise self._failed(step, f"the disk is full: {needed:,} bytes needed, {free:,} free")
        return step_folders.attempt_name(step)

    def advance(self) -> None:
        """Once per step: complete the save if all ranks have written their files; nothing when none is pending."""
        if self._attempt is None:
            return
        missing = torch.tensor([not self._attempt.writing.ended], dtype=torch.int32)  # on the host: no wait for the device
        if not self.world.all_reduce_sum(missing).item():
            self._complete(written=True)

    def wait(self) -> None:
        """Complete the pending save, if any."""
        if self._attempt is not None:
            self._complete()

    def taken(self) -> list[Saved]:
        """The saves completed since the last call."""
        saved, self._saved = self._saved, []
        return saved

    def save(
        self, learner: Learner, train_state: dict[str, Any], step: int, others: Sequence[Callable[[], list[PendingFile]]] = ()
    ) -> Path:
        """`begin` and `wait`; returns the complete folder."""
        self.begin(learner, train_state, step, others)
        self.wait()
        return self.folder / step_folders.step_name(step)

    def has(self, step: int) -> bool:
        """Whether the checkpoint of `step` is complete in this run's folder; a pending save is completed first."""
        self.wait()
        return self._on_main(lambda: step_folders.has_step(self.folder, step), step)

    def mark_best(self, step: int) -> bool:
        """Let `best` name the checkpoint of `step`, which is not deleted then, and the one before may be; a pending save is
        completed first.

        False, with a warning: that checkpoint is not there; then there is no `best` any more.
        """
        self.wait()
        return self._on_main(lambda: self._mark_best(step), step)

    def _mark_best(self, step: int) -> bool:
        if not step_folders.has_step(self.folder, step):
            log.warning("The best checkpoint, of step %d, is not in %s any more.", step, self.folder)
            self._unmark_best()
            return False
        if step_folders.named(self.folder, step_folders.BEST) != step_folders.step_name(step):
            self.check_held()
            step_folders.mark_best(self.folder, step, self.keep)
        return True

    def unmark_best(self, step: int) -> None:
        """Let no checkpoint be the best one; a warning names the one that was, which may be deleted as an old one then.

        `step`: of the run, for the message when the disk fails.
        """
        self._on_main(self._unmark_best, step)

    def _unmark_best(self) -> None:
        if not (self.folder / step_folders.BEST).exists():
            return
        self.check_held()
        name = step_folders.named(self.folder, step_folders.BEST)
        log.warning("%s named %s, which is not the best checkpoint of this run: it names none now.", self.folder / "best", name)
        (self.folder / step_folders.BEST).unlink()

    def _complete(self, *, written: bool = False) -> None:
        """Raises CheckpointError on every rank when one could not write, and removes the attempt. `written`: all ranks have."""
        attempt, self._attempt = self._attempt, None
        assert attempt is not None
        held = time.perf_counter()
        writing = attempt.writing
        if not written:
            wait_for_all(self.world, writing, f"Writing the checkpoint of step {attempt.step}")
        reports = self.world.gather_object((writing.written, (writing.problem, writing.transient)))

        def publish() -> Saved:
            manifest = self._publish(attempt, reports)
            now = time.perf_counter()
            return Saved(attempt.step, manifest.bytes, now - attempt.began, attempt.paused + now - held)

        self._saved.append(self._on_main(publish, attempt.step))

    def _publish(self, attempt: _Attempt, reports: list[tuple[list[WrittenFile], tuple[str, bool]]]) -> Manifest:
        """On rank 0. This process may have been stopped for hours since the save began."""
        partial = attempt.folder
        self.check_held()
        try:
            self._raise_problems(attempt.step, [problem for _, problem in reports])
            written = [(rank, file) for rank, (files, _) in enumerate(reports) for file in files]
            self._see(attempt.step, partial, written)
            files = {file.name: file for _, file in written}
            manifest = Manifest(attempt.step, self.world.size, attempt.model, files)
            self.check_held()  # files of other nodes may have come late
            step_folders.publish(partial, manifest, self.keep)
            return manifest
        except (CheckpointError, OSError):
            self.check_held()
            step_folders.remove_attempt(partial)
            raise

    def _see(self, step: int, partial: Path, written: list[tuple[int, WrittenFile]]) -> None:
        """Rank 0 must see what the others wrote: one metadata call per file, more only for what is not there yet."""
        until = time.monotonic() + PATIENCE_SECONDS
        for rank, file in written:
            while (seen := _size(partial / file.name)) != file.bytes:
                if time.monotonic() > until:
                    raise self._failed(step, _not_seen(rank, file, seen), transient=True)
                time.sleep(0.2)

    def _raise_problems(self, step: int, problems: list[tuple[str, bool]]) -> None:
        """`problems`: per rank what it is, and whether it may pass."""
        found = [f"rank {rank}: {problem}" for rank, (problem, _) in enumerate(problems) if problem]
        if found:
            transient = all(may for problem, may in problems if problem)
            raise self._failed(step, "; ".join(found[:3]), transient=transient)

    def _failed(self, step: int, why: str, *, transient: bool = False) -> CheckpointError:
        """`transient`: the file system failed, and neither room nor rights are lacking."""
        what = f"The checkpoint of step {step} could not be written to {self.folder} ({why}). The newest complete checkpoint: "
        what += f"{self._newest_for_people()}. "
        if transient:
            return TransientCheckpointError(
                f"{what}When the file system answers, give the same command again: it goes on from that one."
            )
        return CheckpointError(
            f"{what}Make room (checkpoint.keep={self.keep}) or give the rights to write there, then give the same command "
            "again: it goes on from that one."
        )

    def _newest_for_people(self) -> str:
        try:
            return step_folders.named(self.folder) or "none"
        except OSError:  # of the file system that has just failed: the first error is the one to be told
            return "not known"

    def _on_main(self, work: Callable[[], T], step: int) -> T:
        """Collective: `on_main`, with errors of the disk as CheckpointErrors."""

        def named() -> T:
            try:
                return work()
            except OSError as error:
                raise self._failed(step, in_words(error, self.folder), transient=may_pass(error)) from error

        return on_main(self.world, named)


def _size(path: Path) -> int | None:
    """None: there is no such file yet, as this node sees it."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _not_seen(rank: int, file: WrittenFile, seen: int | None) -> str:
    if seen is None:
        return (
            f"rank {rank} has written {file.name}, and rank 0 does not see it; all nodes must write to one shared file system, "
            "give such a folder in `output`"
        )
    return f"rank {rank} wrote {file.bytes:,} bytes of {file.name}, rank 0 sees {seen:,}"
