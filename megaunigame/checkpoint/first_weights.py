"""Keeps the step of another run that a run began with: that run deletes old checkpoints, and this one still needs it.

    RUN/first_weights/3f0c.../recipe.yaml, run.json, checkpoints/step-00000500/   a run folder with that one step

The files are hard links: they take no room, and stay when the other run deletes its names of them.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from pathlib import Path

from megaunigame.checkpoint.manifest import MANIFEST, read_manifest
from megaunigame.checkpoint.runs import CHECKPOINTS, read_train_state, start_of
from megaunigame.storage.disk_errors import in_words
from megaunigame.storage.whole_files import flush_file, flush_folder

KEPT = "first_weights"
LARGEST_COPY = 2 * 10**9
"""Bytes: adapters and their moments are copied to another file system, whole models are not."""
log = logging.getLogger(__name__)


def keep_start(run_folder: Path, start: str) -> str:
    """Keep the step folder `start`, and those it began with itself; returns its place below `run_folder`.

    Empty: `start` is not a step folder, or it cannot be kept, which a warning says. Once done, it does nothing more.
    """
    if not start or not (Path(start) / MANIFEST).is_file():
        return ""
    step = Path(start)
    place = run_folder / KEPT / hashlib.sha256((step / MANIFEST).read_bytes()).hexdigest()[:16]
    kept = place / CHECKPOINTS / step.name
    if not (kept / MANIFEST).is_file():
        try:
            _keep(step, place)
        except OSError as error:
            log.warning(
                "model.weights_from: %s cannot be kept in %s (%s). This run needs it to be resumed and exported: copy it "
                "elsewhere before its run deletes it (checkpoint.keep), or begin with an export of it.",
                step,
                run_folder,
                in_words(error, run_folder),
            )
            return ""
    return str(kept.relative_to(run_folder))


def _keep(step: Path, place: Path) -> None:
    fresh = place.with_name(f"{place.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    manifest, folder = read_manifest(step), fresh / CHECKPOINTS / step.name
    folder.mkdir(parents=True)
    for name in (MANIFEST, *manifest.files):
        _link(step / name, folder / name, may_copy=manifest.bytes <= LARGEST_COPY)
    for name in ("recipe.yaml", "run.json"):  # copies: each launch of the other run writes them
        source = step.resolve().parents[1] / name
        if source.is_file():
            _copy(source, fresh / name)
    keep_start(fresh, start_of(step, read_train_state(step)))
    for below in (folder, folder.parent, fresh):  # names and content before the name that says all is there
        flush_folder(below)
    fresh.rename(place)
    flush_folder(place.parent)


def _link(source: Path, target: Path, *, may_copy: bool) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        if not may_copy:
            raise
        _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    flush_file(target)
