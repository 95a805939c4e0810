"""Source files named on the command line by folder, glob or brace list."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from webdataset.shardlists import expand_urls

from megaunigame.errors import DataError
from megaunigame.storage.foreign_text import quoted

from ..shard_writer import hash_of
from .table_files import files_of_folder


def source_files(patterns: Sequence[str], ending: str, out: Path, split: str | None = None) -> tuple[Path, ...]:
    """The files, in the order of the patterns, those of one folder or glob sorted by name.

    A folder may be one of the Hugging Face hub or of `save_to_disk`; of its splits, `split` is taken.
    Raises DataError for a pattern that matches nothing, and when `out` is a folder with sources in it (which
    --overwrite would delete).
    """
    files: dict[Path, None] = {}
    for pattern in (expanded for given in patterns for expanded in expand_urls(given)):
        refuse_url(pattern, "--source")
        path = Path(pattern)
        found = files_of_folder(path, ending, split) if path.is_dir() else sorted(map(Path, glob.glob(pattern)))
        if not found:
            _refuse_compressed(pattern, path, ending)
            raise DataError(
                f"--source {pattern}: no {ending} file there; give folders, files, globs ('cc3m/*{ending}') or brace "
                f"lists ('cc3m/{{00000..00331}}{ending}') that exist"
            )
        files.update(dict.fromkeys(found))
    for file in files:
        if not file.name.endswith(ending):
            raise DataError(f"--source {file}: is not a {ending} file")
        if out.resolve() == file.resolve().parent:
            raise DataError(f"--out {out}: the sources lie there; choose another folder")
    return tuple(files)


def refuse_url(name: str, option: str) -> None:
    """Raises DataError for a URL: what is packed is read here."""
    if "://" in name:
        raise DataError(
            f"{option} {name}: is a URL, and only local files are packed. Download it first (aws s3 cp, curl -O, "
            "huggingface-cli download), or, if it is a folder of shards of data_prep, give it to a run as data.NAME.shards"
        )


def _refuse_compressed(pattern: str, path: Path, ending: str) -> None:
    """Raises DataError when there are compressed files instead of those with the ending."""
    for program, other in (("gunzip", ".gz"), ("unzstd", ".zst"), ("unxz", ".xz")):
        packed = sorted(path.glob(f"*{ending}{other}")) if path.is_dir() else []
        if packed:
            raise DataError(
                f"--source {pattern}: {len(packed)} compressed files such as {quoted(packed[0].name)}: unpack them ({program})"
            )


def files_identity(files: Sequence[Path]) -> dict[str, object]:
    """Number of files, and a hash of their names and sizes: reading terabytes only to hash them would take hours."""
    return {"files": len(files), "files_sha256": hash_of([[file.name, file.stat().st_size] for file in files])}
