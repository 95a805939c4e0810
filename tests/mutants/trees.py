"""A copy of the repository that holds one mutant at a time. The files of the repository itself are never written."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import cache_from_source
from pathlib import Path

from tests.mutants.listed import REPOSITORY, Mutant


def repository_files() -> list[str]:
    """What git knows or would add, as it is in the working tree."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (REPOSITORY / name).is_file()]


class Tree:
    """The copy, in `folder`, which must be empty or absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in repository_files():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, target)
        # Tests that need a repository find one.
        subprocess.run(["git", "init", "-q"], cwd=folder, check=True)

    @contextmanager
    def with_mutant(self, mutant: Mutant) -> Iterator[None]:
        """The tree has this fault inside the block."""
        file = self.folder / mutant.file
        text = file.read_text(encoding="utf-8")
        self._write(file, mutant.applied_to(text))
        try:
            yield
        finally:
            self._write(file, text)

    def _write(self, file: Path, text: str) -> None:
        file.write_text(text, encoding="utf-8")
        # Python would take the compiled file of before: it compares size and whole seconds alone.
        Path(cache_from_source(str(file))).unlink(missing_ok=True)
