"""Verdicts about mutants, and their file: `verdicts.json`, which is part of the repository.

A line for each mutant: its name, the outcome, the seconds it took, the test that failed first, and a fingerprint of what was
judged. A verdict counts while the fingerprint is that of today: of the mutant, the file that it changes, and its tests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

from tests.mutants.listed import RANKS, REPOSITORY, Mutant

NOTICED, SURVIVED, TIMEOUT, BROKEN = "noticed", "survived", "timeout", "broken"
"""`timeout`: the tests did not end, which is noticed too. `broken`: they fail without the mutant."""
VERDICTS = REPOSITORY / "tests" / "mutants" / "verdicts.json"
PROGRAM = "tests/mutants/rank_program.py"


@dataclass(frozen=True)
class Verdict:
    """Of one mutant."""

    outcome: str
    seconds: float
    by: str
    """The test that failed first; empty: none."""
    fingerprint: str
    """Of the mutant, the file that it changes, and its tests."""


def fingerprint(mutant: Mutant, root: Path = REPOSITORY) -> str:
    """Of a mutant, the file that it changes and the files of its tests, as they are below `root`."""
    files = sorted({mutant.file, *(file for test in mutant.tests for file in _files_of(test))})
    parts = [mutant.old, mutant.new, *mutant.tests, *((root / file).read_text(encoding="utf-8") for file in files)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _files_of(test: str) -> list[str]:
    if test.startswith(RANKS):
        return [PROGRAM, f"tests/multi_process/{test.removeprefix(RANKS).split()[0]}.py"]
    return [test.split("::")[0]]


class Verdicts:
    """Verdicts by the name of the mutant, kept in a file that is written after each."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.of_name: dict[str, Verdict] = {}
        if file.is_file():
            self.of_name = {name: Verdict(*fields) for name, *fields in json.loads(file.read_text(encoding="utf-8"))}

    def of(self, mutant: Mutant) -> Verdict | None:
        """None: not judged yet, or the mutant, its file or its tests have changed since."""
        verdict = self.of_name.get(mutant.name)
        return verdict if verdict and verdict.fingerprint == fingerprint(mutant) else None

    def add(self, mutant: Mutant, verdict: Verdict) -> None:
        self.of_name[mutant.name] = verdict
        self._write()

    def merge(self, others: Verdicts, mutants: Iterable[Mutant]) -> None:
        """Take over the verdicts about `mutants` that count today."""
        self.of_name |= {mutant.name: verdict for mutant in mutants if (verdict := others.of(mutant))}
        self._write()

    def keep(self, names: Container[str]) -> None:
        """Drop the verdicts about mutants of other names."""
        self.of_name = {name: verdict for name, verdict in self.of_name.items() if name in names}
        self._write()

    def _write(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps([name, *astuple(verdict)]) for name, verdict in sorted(self.of_name.items())]
        fresh = self.file.with_suffix(".new")
        fresh.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
        fresh.replace(self.file)
