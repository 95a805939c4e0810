"""The files of a table named by a folder: plain files, a folder of the Hugging Face hub, or one that `save_to_disk` wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from megaunigame.errors import DataError

SPLITS = {"train", "test", "validation", "valid", "val", "dev"}
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"
"""What `Dataset.save_to_disk` and `DatasetDict.save_to_disk` write into their folders."""


def files_of_folder(folder: Path, ending: str, split: str | None, any_split: bool = False) -> list[Path]:
    """The files with this ending, in order; of several splits the one asked for, or with `any_split` all.

    Looked for in this order: what `save_to_disk` lists; in the folder itself; in `data/`; one and two levels down.
    Raises DataError for several splits without `split`, for one that is not there, and for a saved file that is missing.
    """
    if (folder / SAVED_SPLITS).is_file():
        splits = _listed(folder / SAVED_SPLITS, "splits")
        return _saved_files(folder / _chosen(folder, [str(name) for name in splits], split))
    if (folder / SAVED).is_file():
        return _saved_files(folder)
    for pattern in ("*", "data/*", "*/*", "*/*/*"):
        found = sorted(folder.glob(pattern + ending))
        if found:
            break
    else:
        return []
    of_split: dict[str, list[Path]] = {}
    for file in found:
        of_split.setdefault(_split_of(file, folder), []).append(file)
    names = sorted(name for name in of_split if name)
    if any_split or (split is None and len(names) < 2):
        return found
    return of_split[_chosen(folder, names, split)]


def _split_of(file: Path, folder: Path) -> str:
    """`train` of data/train-00000-of-00002.parquet, of train.parquet and of train/0000.parquet; else empty."""
    shard = re.fullmatch(r"(.+)-\d{5}-of-\d{5}", file.stem)
    beginning = (shard[1] if shard else file.stem).lower()
    names = [
        re.split(r"[-_.]", beginning)[0],
        re.split(r"[-_.]", beginning)[-1],
        *(p.lower() for p in file.relative_to(folder).parts),
    ]
    return next((name for name in names if name in SPLITS), "")


def _chosen(folder: Path, names: list[str], split: str | None) -> str:
    if split is None and len(names) == 1:
        return names[0]
    if split is None or split not in names:
        got = "several splits" if split is None else f"no split {split}"
        usual = "train" if "train" in names else names[0] if names else ""
        typed = f"Type --split {usual}" + (" or another" if len(names) > 1 else "") if names else "Leave --split out"
        raise DataError(f"--source {folder}: has {got}; there are {', '.join(names) or 'none'}. {typed}")
    return split


def _saved_files(folder: Path) -> list[Path]:
    named = [folder / str(entry["filename"]) for entry in _listed(folder / SAVED, "_data_files")]
    for file in named:
        if not file.is_file():
            raise DataError(f"--source {folder}: {file.name}, which {SAVED} lists, is missing; copy the folder again")
    return named


def _listed(file: Path, key: str) -> list[Any]:
    try:
        listed: list[Any] = json.loads(file.read_bytes())[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"--source {file}: is not what save_to_disk writes ({type(error).__name__}: {error})") from error
    return listed
