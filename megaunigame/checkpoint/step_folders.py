"""The folders of a run's checkpoints: which are complete, which is the newest, and how one takes its place.

    step-00000500            complete: it has a manifest, and files of the sizes in it
    latest                   name of the one to go on from
    saving-step-00000500     being written, or what a kill has left of that
    deleting-step-00000400   being deleted

A folder is complete before it gets its name, so a kill at any moment leaves the older ones as they are. Folders without a
manifest are not ours: they are neither used nor deleted.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from megaunigame.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from megaunigame.errors import CheckpointError
from megaunigame.storage.disk_errors import in_words
from megaunigame.storage.whole_files import flush_folder, write_whole

LATEST, SAVING, DELETING = "latest", "saving-", "deleting-"
STEP = re.compile(r"step-(\d{8,})")
log = logging.getLogger(__name__)


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def step_folders(checkpoints: Path) -> list[Path]:
    """Every folder with the name of a step, newest step first."""
    if not checkpoints.is_dir():
        return []
    found = (path for path in checkpoints.iterdir() if STEP.fullmatch(path.name) and path.is_dir())
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def complete(checkpoints: Path) -> Iterator[tuple[Path, Manifest]]:
    """The complete ones, newest step first."""
    for folder in step_folders(checkpoints):
        try:
            yield folder, read_manifest(folder)
        except CheckpointError:
            continue  # whoever asked for this very folder is told why it is not complete


def named_by_latest(checkpoints: Path) -> str:
    """The step that `latest` names; empty when there is no such file, or something else in it."""
    try:
        name = (checkpoints / LATEST).read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        return ""
    return name if STEP.fullmatch(name) else ""


def newest(checkpoints: Path) -> tuple[Path, Manifest] | None:
    """The step to go on from, or None for a run that has saved nothing.

    That is the one `latest` names; if there is no such file, or that step is not complete, the newest complete one, and a
    warning says so. Raises CheckpointError when there are step folders, but no complete one.
    """
    name = named_by_latest(checkpoints)
    problem = f"{checkpoints / LATEST} names no step"
    if name:
        try:
            return checkpoints / name, read_manifest(checkpoints / name)
        except CheckpointError as error:
            problem = str(error)
    for folder, manifest in complete(checkpoints):
        log.warning("%s The run goes on from %s, the newest complete checkpoint.", _sentence(problem), folder)
        return folder, manifest
    there = step_folders(checkpoints)
    if not there and not (checkpoints / LATEST).exists():
        return None
    if there and not name:
        problem = _why(there[0])
    raise CheckpointError(
        f"{_sentence(problem)} No folder in {checkpoints} is a complete checkpoint. To start again at step 1, give another "
        f"`output` or delete {checkpoints}."
    )


def _why(folder: Path) -> str:
    """Why that folder is not complete."""
    try:
        read_manifest(folder)
    except CheckpointError as error:
        return str(error)
    return f"{folder} has just become complete: give the command again."


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def publish(partial: Path, manifest: Manifest, keep: int) -> Path:
    """Make a complete folder of `partial`, whose files are written and flushed; point `latest` to it; delete old ones."""
    checkpoints, name = partial.parent, partial.name.removeprefix(SAVING)
    write_whole(partial / MANIFEST, manifest.as_json())
    final = checkpoints / name
    replaced = _set_aside(final) if final.exists() else None
    os.replace(partial, final)
    flush_folder(checkpoints)  # before `latest` names it
    write_whole(checkpoints / LATEST, name)
    if replaced is not None:
        _remove(replaced)
    prune(checkpoints, keep, final)
    return final


def prune(checkpoints: Path, keep: int, newest_one: Path) -> None:
    """Delete all but the `keep` youngest checkpoints; never `newest_one`."""
    # By age, not by step: a run that went back to an older step must not lose what it writes next.
    ages = {folder: (folder / MANIFEST).stat().st_mtime_ns for folder in step_folders(checkpoints) if _has_manifest(folder)}
    others = sorted((folder for folder in ages if folder != newest_one), key=ages.__getitem__)
    for old in others[: max(0, len(others) - keep + 1)]:
        try:
            _remove(_set_aside(old))
        except OSError as error:
            log.warning("%s could not be deleted (%s).", old, in_words(error, old))


def _has_manifest(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def _set_aside(folder: Path) -> Path:
    """First the name: an interrupted deletion must not leave half a step folder."""
    aside = folder.with_name(f"{DELETING}{folder.name}")
    if aside.exists():
        shutil.rmtree(aside)
    return folder.rename(aside)


def _remove(folder: Path) -> None:
    """Delete a folder. What cannot be deleted stays, with a warning: the checkpoint that was just written is complete."""
    try:
        (folder / MANIFEST).unlink(missing_ok=True)  # half of it must not look complete
        shutil.rmtree(folder)
    except OSError as error:
        log.warning("%s could not be deleted (%s).", folder, in_words(error, folder))


def remove_attempt(partial: Path) -> None:
    """Delete what a save that failed has written: the disk must not stay full."""
    if partial.exists():
        _remove(partial)


def clear_leftovers(checkpoints: Path) -> None:
    """Delete what a killed save or deletion has left. Only for who has the run folder alone.

    A kill between the two renames of a save that replaces a step leaves that step without its name: it gets it back.
    """
    if not checkpoints.is_dir():
        return
    for prefix in (SAVING, DELETING):  # the new one of a step before the old one
        for leftover in sorted(checkpoints.glob(f"{prefix}step-*")):
            step = checkpoints / leftover.name.removeprefix(prefix)
            if _is_complete(leftover) and not step.exists():
                leftover.rename(step)
            else:
                _remove(leftover)


def _is_complete(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except CheckpointError:
        return False
    return True
