"""Whether the tests of a mutant notice it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tests.mutants.listed import RANKS, VARIABLE, Mutant
from tests.mutants.trees import Tree
from tests.mutants.verdicts import BROKEN, NOTICED, PROGRAM, SURVIVED, TIMEOUT, Verdict, fingerprint
from tests.mutants.warm import run_tests

LIMIT, LIMIT_OF_RANKS = 240.0, 280.0
"""Seconds of one run of the tests."""
FAILED = re.compile(r"^(?:FAILED|ERROR) ([^\s\[]+)", re.MULTILINE)
ENDED = (1, 2)
"""Exit codes of pytest: a test failed, a test file could not be read."""


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
            failed = _failed(mutant, by)
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


def _failed(mutant: Mutant, by: str) -> tuple[str, ...]:
    """The test `by` that failed; of one with parameters, the cases that the mutant names. Empty `by`: all its tests."""
    cases = tuple(test for test in mutant.tests if by and test.startswith(f"{by}["))
    return cases or ((by,) if by else mutant.tests)
