"""The files of a table named by a folder: plain files, a folder of the Hugging Face hub, or one that `save_to_disk` wrote."""

from __future__ import annotations

import re
from pathlib import Path
from shlex import quote
from typing import Any

from megaunigame.errors import DataError
from megaunigame.storage.foreign_text import one_line, quoted
from megaunigame.storage.json_files import read_object
from megaunigame.storage.plain_names import is_plain_name

SPLITS = {"train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation"}
SHARD = re.compile(r"(.+)-\d+-of-\d+(?:-[0-9a-f]+)?")
"""A name of the hub: SPLIT-00000-of-00002, in older ones with a hash at the end."""
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"
"""What `Dataset.save_to_disk` and `DatasetDict.save_to_disk` write into their folders."""


def files_of_folder(folder: Path, ending: str, split: str | None, any_split: bool = False) -> list[Path]:
    """The files with this ending, in order; of several splits the one asked for, or with `any_split` all.

    Looked for in this order: what `save_to_disk` lists; in the folder itself; in `data/`; one and two levels down.
    Raises DataError for several splits without `split`, for a split next to files without one, for one that is not there, for
    several data sets (folders with files of one split, or files in the folder and in `data/`), and for a saved file that is
    missing.
    """
    if (folder / SAVED_SPLITS).is_file():
        splits = _listed(folder / SAVED_SPLITS, "splits")
        _require_plain(folder / SAVED_SPLITS, splits)
        return _saved_files(folder / _chosen(folder, splits, split))
    if (folder / SAVED).is_file():
        return _saved_files(folder)
    for pattern in ("*", "data/*", "*/*", "*/*/*"):
        found = sorted(folder.glob(pattern + ending))
        if found:
            break
    else:
        return []
    if any_split:
        return found
    if pattern == "*" and any(folder.glob(f"data/*{ending}")):
        raise DataError(
            f"--source {folder}: has {ending} files in it and others in data/. Give one: --source {folder / 'data'}, or "
            f"--source '{folder / '*'}{ending}'"
        )
    of_split: dict[str, list[Path]] = {}
    for file in found:
        of_split.setdefault(_split_of(file, folder), []).append(file)
    names = sorted(name for name in of_split if name)
    if split is None and len(names) == 1 and "" in of_split:
        raise DataError(
            f"--source {folder}: has the split {one_line(names[0])} next to {len(of_split[''])} files without one, such as "
            f"{one_line(of_split[''][0].name)}. Type --split {quote(names[0])}, or name all files: "
            f"--source '{folder / pattern}{ending}'"
        )
    chosen = found if not names and split is None else of_split[_chosen(folder, names, split)]
    _require_one_configuration(folder, chosen)
    return chosen


def _split_of(file: Path, folder: Path) -> str:
    """`train_sft` of data/train_sft-00000-of-00002.parquet, `train` of train.parquet and of train/0000.parquet; else empty."""
    shard = SHARD.fullmatch(file.stem)
    words = _words(file.stem)
    if shard is not None:  # the hub writes the name of the split before these numbers, whatever it is
        return shard[1].lower()
    of_folders = [word for part in file.relative_to(folder).parts[:-1] for word in _words(part)]
    return next((word for word in (*words, *of_folders) if word in SPLITS), "")


def _words(name: str) -> list[str]:
    """`cc3m`, `train` of cc3m-train-0000; `val` of val2017."""
    return [word.rstrip("0123456789") for word in re.split(r"[-_.]", name.lower())]


def _require_one_configuration(folder: Path, files: list[Path]) -> None:
    """Raises DataError for files of several folders, unless those differ in a number only, or are named for a split."""
    configurations = {_configuration_of(file, folder): file.parent for file in files}
    if len(configurations) > 1:
        names = sorted(configurations)
        raise DataError(
            f"--source {folder}: has several data sets; there are {one_line(', '.join(names))}. Give one of the folders: "
            f"--source {quote(str(configurations[names[0]]))}, or all files by a glob in quotes"
        )


def _configuration_of(file: Path, folder: Path) -> str:
    parts = file.relative_to(folder).parts[:-1]
    named = [re.sub(r"\d+", "N", part) for part in parts if part != "data" and not SPLITS & set(_words(part))]
    return "/".join(named) or "."


def _chosen(folder: Path, names: list[str], split: str | None) -> str:
    """The split asked for, by its name or by a word of it that no other split has."""
    if split is None and len(names) == 1:
        return names[0]
    meant = [name for name in names if name == split] or [name for name in names if split in _words(name)]
    if len(meant) == 1:
        return meant[0]
    got = "several splits" if split is None else f"several splits {split}" if meant else f"no split {split}"
    usual = "train" if "train" in names else (meant or names or [""])[0]
    typed = f"Type --split {quote(usual)}" + (" or another" if len(names) > 1 else "") if names else "Leave --split out"
    raise DataError(f"--source {folder}: has {got}; there are {one_line(', '.join(names)) or 'none'}. {typed}")


def _saved_files(folder: Path) -> list[Path]:
    entries = _listed(folder / SAVED, "_data_files")
    names: list[Any] = [entry.get("filename") if isinstance(entry, dict) else entry for entry in entries]
    _require_plain(folder / SAVED, names)
    named = [folder / name for name in names]
    for file in named:
        if not file.is_file():
            raise DataError(f"--source {folder}: {file.name}, which {SAVED} lists, is missing; copy the folder again")
    return named


def _require_plain(file: Path, names: list[Any]) -> None:
    """Raises DataError for a name that leads out of the folder of `file`, which has it."""
    for name in names:
        if not is_plain_name(name):
            raise DataError(
                f"--source {file}: names {quoted(name, 200)}, which is not a name in its folder; leave the folder out"
            )


def _listed(file: Path, key: str) -> list[Any]:
    listed = read_object(file, "what save_to_disk writes", DataError, "Copy the folder again.").get(key)
    if not isinstance(listed, list):
        raise DataError(f"--source {file}: is not what save_to_disk writes (no list {key})")
    return listed
