"""The folders of a run's checkpoints: which are complete, which is the newest, and how one takes its place.

    step-00000500                   complete: it has a manifest, and files of the sizes in it
    latest                          name of the one that was saved last, for people and scripts
    best                            name of the one with the best metric (`checkpoint.best`), which is never deleted as old
    saving-step-00000500.1f3a90c2   being written, or what a kill has left of that
    deleting-step-00000400          being deleted
    stray-step-00000450.77b0e9d1    had the name of a step that was saved, and no manifest

The end of a `saving-` name is another one in each attempt: a run that was stopped, and has lost the folder to another, never
writes into the files of that one.

A folder is complete before it gets its name, so a kill at any moment leaves the older ones as they are. Manifests count the
saves: a run that went back on purpose goes on from what it saved last, not from its largest step, and one that was killed
before it moved `latest` loses nothing. Folders without a manifest are not ours: they are neither used nor deleted.

Where the file system fails to give a manifest, these functions raise OSError: that step may be complete, and the newest.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator
from itertools import takewhile
from pathlib import Path

from megaunigame.checkpoint.manifest import MANIFEST, Manifest, described, read_manifest
from megaunigame.errors import CheckpointError
from megaunigame.storage.disk_errors import in_words
from megaunigame.storage.retries import retried
from megaunigame.storage.whole_files import flush_folder, write_whole

LATEST, BEST, SAVING, DELETING, STRAY = "latest", "best", "saving-", "deleting-", "stray-"
STEP = re.compile(r"step-(\d{8,})")
log = logging.getLogger(__name__)


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def attempt_name(step: int) -> str:
    """Name of the folder in which the files of a save are written until it is complete."""
    return f"{SAVING}{step_name(step)}.{secrets.token_hex(4)}"


def _final(folder: Path) -> Path:
    """The step folder that an attempt becomes, or that is being deleted."""
    return folder.with_name(folder.name.removeprefix(SAVING).removeprefix(DELETING).partition(".")[0])


def step_folders(checkpoints: Path) -> list[Path]:
    """Every folder with the name of a step, newest step first."""
    if not checkpoints.is_dir():
        return []
    found = (path for path in checkpoints.iterdir() if STEP.fullmatch(path.name) and path.is_dir())
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def complete(checkpoints: Path) -> Iterator[tuple[Path, Manifest]]:
    """The complete ones, last saved first."""
    for folder in _by_age(checkpoints):
        try:
            yield folder, read_manifest(folder)
        except CheckpointError:
            continue  # whoever asked for this very folder is told why it is not complete


def _by_age(checkpoints: Path) -> dict[Path, int]:
    """Folder -> number of its save, for those with a manifest; last saved first. Raises OSError rather than leave one out."""
    saves = {}
    for folder in step_folders(checkpoints):
        try:
            saves[folder] = described(folder).saves
        except CheckpointError:
            continue
    latest = named(checkpoints)  # decides between folders that were not counted
    return dict(sorted(saves.items(), key=lambda item: (item[1], item[0].name == latest), reverse=True))


def named(checkpoints: Path, file: str = LATEST) -> str:
    """The step that `latest`, or `best`, names; empty when there is no such file, or something else in it."""
    try:
        name = retried(lambda: (checkpoints / file).read_text(encoding="utf-8")).strip()
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        return ""
    return name if STEP.fullmatch(name) else ""


def newest(checkpoints: Path) -> tuple[Path, Manifest] | None:
    """The step to go on from: of the complete ones the one that was saved last. None for a run that has saved nothing.

    A warning says so when `latest` does not name it, and which steps were passed over because they are damaged. Raises
    CheckpointError when there are step folders, but no complete one.
    """
    latest, there = checkpoints / LATEST, step_folders(checkpoints)
    found, name = next(complete(checkpoints), None), named(checkpoints)
    if found is not None:
        said = [] if found[0].name == name else [_about_latest(latest, name, found[0])]
        said += [_why(folder) for folder in _passed_over(checkpoints, found[0]) if folder.name != name]
        if said:
            log.warning("%s The run goes on from %s, the newest complete checkpoint.", " ".join(said), found[0])
        return found
    interrupted = next((leftover for leftover in _leftovers(checkpoints) if _is_complete(leftover)), None)
    if interrupted is not None and (there or latest.exists()):
        raise CheckpointError(
            f"{interrupted} is complete, but a kill has kept it from its name. Start the training again: it gives it back."
        )
    if not there and not latest.exists():
        return None
    problem = _why(checkpoints / name) if name else _why(there[0]) if there else f"{latest} names no step."
    raise CheckpointError(
        f"{problem} No folder in {checkpoints} is a complete checkpoint. To start again at step 1, give another `output` or "
        f"delete {checkpoints}."
    )


def _passed_over(checkpoints: Path, taken: Path) -> list[Path]:
    """Steps with a manifest that were saved after `taken`, or of which that is not known: none of them is complete."""
    ages = list(_by_age(checkpoints))
    return [*takewhile(lambda folder: folder != taken, ages), *_with_garbage(checkpoints, ages)]


def _with_garbage(checkpoints: Path, ages: Collection[Path]) -> list[Path]:
    """Step folders whose manifest is not one. `ages`: those that have one."""
    return [folder for folder in step_folders(checkpoints) if folder not in ages and (folder / MANIFEST).is_file()]


def _about_latest(latest: Path, name: str, found: Path) -> str:
    """Why another step than the one it names is taken."""
    if not latest.exists():
        return f"{latest} is missing."
    if not name:
        return f"{latest} names no step."
    if _is_complete(latest.parent / name):
        return f"{latest} names {name}, and {found.name} was saved after it."
    return _why(latest.parent / name)


def _why(folder: Path) -> str:
    """Why that folder is not complete."""
    try:
        read_manifest(folder, remedy="")
    except CheckpointError as error:
        return str(error) if str(error).endswith(".") else f"{error}."
    return f"{folder} has just become complete: give the command again."


def has_step(checkpoints: Path, step: int) -> bool:
    """Whether the checkpoint of `step` is complete."""
    return _is_complete(checkpoints / step_name(step))


def mark_best(checkpoints: Path, step: int, keep: int) -> None:
    """Let `best` name the checkpoint of `step`; the one that it named before is deleted, if it is an old one."""
    retried(lambda: write_whole(checkpoints / BEST, step_name(step)))
    latest = named(checkpoints)
    if latest:
        prune(checkpoints, keep, checkpoints / latest)


def publish(partial: Path, manifest: Manifest, keep: int) -> Path:
    """Make a complete folder of `partial`, whose files are written and flushed; point `latest` to it; delete old ones."""
    checkpoints, final = partial.parent, _final(partial)
    saves = 1 + max(_by_age(checkpoints).values(), default=0)
    retried(lambda: write_whole(partial / MANIFEST, dataclasses.replace(manifest, saves=saves).as_json()))
    replaced = _make_way(final)
    retried(lambda: os.replace(partial, final))
    retried(lambda: flush_folder(checkpoints))  # before `latest` names it
    retried(lambda: write_whole(checkpoints / LATEST, final.name))
    if replaced is not None:
        _remove(replaced)
    prune(checkpoints, keep, final)
    return final


def prune(checkpoints: Path, keep: int, newest_one: Path) -> None:
    """Delete all but the `keep` checkpoints that were saved last; never `newest_one`, nor the one that `best` names."""
    # By age, not by step: a run that went back to an older step must not lose what it writes next.
    try:
        ages = _by_age(checkpoints)
        garbage, best = _with_garbage(checkpoints, ages), named(checkpoints, BEST)
    except OSError as error:  # what could not be read may be the best of them
        log.warning("No old checkpoint in %s is deleted now: %s.", checkpoints, in_words(error, checkpoints))
        return
    others = [folder for folder in (*ages, *garbage) if folder != newest_one]
    for old in (folder for folder in others[keep - 1 :] if folder.name != best):
        try:
            _remove(_set_aside(old))
        except OSError as error:
            log.warning("%s could not be deleted (%s).", old, in_words(error, old))


def _make_way(final: Path) -> Path | None:
    """The step whose name is needed, set aside to be deleted; None: there is none. What is not ours keeps its content."""
    if not final.exists():
        return None
    if (final / MANIFEST).is_file():
        return _set_aside(final)
    stray = final.with_name(f"{STRAY}{final.name}.{secrets.token_hex(4)}")
    final.rename(stray)
    log.warning(
        "%s had no %s, so it was not a checkpoint of this run. Now it is %s: delete or move it.", final, MANIFEST, stray
    )
    return None


def _set_aside(folder: Path) -> Path:
    """First the name: an interrupted deletion must not leave half a step folder."""
    aside = folder.with_name(f"{DELETING}{folder.name}")
    if aside.exists():
        shutil.rmtree(aside)
    return folder.rename(aside)


def _remove(folder: Path, *, missing_ok: bool = False) -> None:
    """Delete a folder. What cannot be deleted stays, with a warning: the checkpoint that was just written is complete."""
    try:
        if missing_ok and not folder.exists():
            return
        (folder / MANIFEST).unlink(missing_ok=True)  # half of it must not look complete
        shutil.rmtree(folder)
    except OSError as error:
        log.warning("%s could not be deleted (%s).", folder, in_words(error, folder))


def remove_attempt(partial: Path) -> None:
    """Delete what a save that failed has written: the disk must not stay full."""
    _remove(partial, missing_ok=True)


def clear_leftovers(checkpoints: Path) -> None:
    """Delete what a killed save or deletion has left. Only for who has the run folder alone.

    A kill between the two renames of a save that replaces a step leaves that step without its name: it gets it back.
    """
    for leftover in _leftovers(checkpoints):
        step = _final(leftover)
        if _is_complete(leftover) and not step.exists():
            leftover.rename(step)
        else:
            _remove(leftover)


def _leftovers(checkpoints: Path) -> list[Path]:
    """What has not its own name yet, or not any more; the new one of a step before the old one."""
    return [path for prefix in (SAVING, DELETING) for path in sorted(checkpoints.glob(f"{prefix}step-*"))]


def _is_complete(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except CheckpointError:
        return False
    return True
