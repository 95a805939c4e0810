"""Whether the tests of a mutant notice it, and the file of results, which a later run goes on with."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.mutants.listed import RANKS, REPOSITORY, VARIABLE, Mutant
from tests.mutants.trees import Tree
from tests.mutants.warm import run_tests

NOTICED, SURVIVED, TIMEOUT, BROKEN = "noticed", "survived", "timeout", "broken"
"""`timeout`: the tests did not end, which is noticed too. `broken`: they fail without the mutant."""
LIMIT, LIMIT_OF_RANKS = 240.0, 280.0
"""Seconds of one run of the tests."""
FAILED = re.compile(r"^(?:FAILED|ERROR) ([^\s\[]+)", re.MULTILINE)
PROGRAM = "tests/mutants/rank_program.py"
ENDED = (1, 2)
"""Exit codes of pytest: a test failed, a test file could not be read."""


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


class Results:
    """Verdicts by the name of the mutant, kept in a file that is written after each."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.verdicts: dict[str, Verdict] = {}
        if file.is_file():
            self.verdicts = {name: Verdict(**fields) for name, fields in json.loads(file.read_text()).items()}

    def of(self, mutant: Mutant) -> Verdict | None:
        """None: not judged yet, or the mutant, its file or its tests have changed since."""
        verdict = self.verdicts.get(mutant.name)
        return verdict if verdict and verdict.fingerprint == fingerprint(mutant) else None

    def add(self, mutant: Mutant, verdict: Verdict) -> None:
        self.verdicts[mutant.name] = verdict
        self.file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.file.with_suffix(".new")
        fresh.write_text(json.dumps({name: asdict(verdict) for name, verdict in sorted(self.verdicts.items())}, indent=1))
        fresh.replace(self.file)


class Judge:
    """Runs tests in a tree. A test that fails with a mutant is run without it too: one that always fails notices nothing."""

    def __init__(self, tree: Tree, logs: Path) -> None:
        self.tree, self.logs = tree, logs
        self.sound: dict[tuple[str, ...], str] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def judge(self, mutant: Mutant) -> Verdict:
        with self.tree.with_mutant(mutant):
            outcome, by, seconds = self._run(mutant.tests, mutant.name)
        if outcome != SURVIVED:
            failed = (by,) if by else mutant.tests
            if failed not in self.sound:
                self.sound[failed], *_ = self._run(failed, f"{mutant.name} without")
            if self.sound[failed] != SURVIVED:
                outcome = BROKEN
        return Verdict(outcome, round(seconds, 1), by, fingerprint(mutant, self.tree.folder))

    def _run(self, tests: Iterable[str], name: str) -> tuple[str, str, float]:
        """Outcome, the first test that failed, seconds. Launches come last: they are slow."""
        seconds = 0.0
        files = [test for test in tests if not test.startswith(RANKS)]
        runs = [(files, {}, LIMIT)] if files else []
        runs += [([PROGRAM], {VARIABLE: test.removeprefix(RANKS)}, LIMIT_OF_RANKS) for test in tests if test.startswith(RANKS)]
        for names, environment, limit in runs:
            log = self.logs / f"{name.replace('/', '.')}.log"
            code, taken = run_tests(self.tree.folder, names, log, limit, **environment)
            seconds += taken
            found = FAILED.search(log.read_text(errors="replace"))
            by = f"{RANKS}{environment[VARIABLE]}" if environment else found[1] if found else ""
            if code is None:
                return TIMEOUT, by, seconds
            if code in ENDED:
                return NOTICED, by, seconds
            if code:
                return BROKEN, by, seconds
        return SURVIVED, "", seconds
