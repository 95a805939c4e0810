"""The list of mutants: one-line faults, and for each the tests that must fail with it.

`rooms/NAME.toml` has those of one room of the library::

    [[mutant]]
    id = "seed-without-rank"
    file = "megaunigame/randomness.py"
    old = "derive(seed, step, micro, rank)"
    new = "derive(seed, step, micro)"
    breaks = "Ranks share dropout and noise."
    tests = ["tests/test_randomness.py"]

`old` stands in `file` exactly once. A test is a file, a test of a file, or cases of a rank program: "ranks: gradients 2 lora
zero2" plays two cases of `tests/multi_process/gradients.py` on two ranks. With `equivalent`, the reason why no test can notice
it, a mutant is counted apart and not run.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
REPOSITORY = TESTS.parent
ROOMS = Path(__file__).resolve().parent / "rooms"
RANKS = "ranks:"
"""Begins the cases of a rank program."""
VARIABLE = "MUTANTS_RANK_PROGRAM"
"""In the environment of `rank_program.py`: PROGRAM RANKS CASE..."""


class ListError(ValueError):
    """A mutant of the list that cannot be applied, or names a test that is not there."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One fault."""

    room: str
    id: str
    file: str
    old: str
    new: str
    breaks: str
    """What goes wrong for a user, in words."""
    tests: tuple[str, ...]
    equivalent: str = ""
    """Why no test can notice it; empty: the tests must."""

    @property
    def name(self) -> str:
        """Unique: `room/id`."""
        return f"{self.room}/{self.id}"

    def applied_to(self, text: str) -> str:
        """The text of the file with the fault. Raises ListError unless `old` is there exactly once."""
        found = text.count(self.old)
        if found != 1:
            raise ListError(
                f"{self.name}: its old text is in {self.file} {found} times, and must be there once. Update `old` and `new` "
                f"in tests/mutants/rooms/{self.room}.toml to the code of today, or remove the mutant if that code is gone.\n"
                f"{self.old}"
            )
        return text.replace(self.old, self.new)


LEGAL = {field.name for field in fields(Mutant)} - {"room"}


def rooms() -> list[str]:
    return sorted(file.stem for file in ROOMS.glob("*.toml"))


def listed(room: str | None = None, folder: Path = ROOMS) -> list[Mutant]:
    """All mutants, or those of one room, in the order of rooms and entries. Raises ListError for an entry that is not one."""
    found = [mutant for file in sorted(folder.glob("*.toml")) if room in (None, file.stem) for mutant in _read(file)]
    if not found:
        raise ListError(
            f"There is no mutant of room {room!r}. Legal: {', '.join(sorted(f.stem for f in folder.glob('*.toml')))}."
        )
    return found


def _read(file: Path) -> Iterable[Mutant]:
    seen = set()
    for entry in tomllib.loads(file.read_text(encoding="utf-8"))["mutant"]:
        place = f"{file.name}: {entry.get('id', 'an entry without id')}"
        keys = set(entry)
        if keys - LEGAL or LEGAL - {"equivalent"} - keys:
            raise ListError(f"{place} has the keys {', '.join(sorted(keys))}. Legal: {', '.join(sorted(LEGAL))}.")
        if entry["id"] in seen or entry["old"] == entry["new"] or not (entry["tests"] or entry.get("equivalent")):
            raise ListError(f"{place}: it needs an id of its own, a change, and at least one test.")
        seen.add(entry["id"])
        yield Mutant(room=file.stem, **{**entry, "tests": tuple(entry["tests"])})


def check_tests(mutants: Iterable[Mutant]) -> None:
    """Raises ListError for a test that is not there. Imports nothing."""
    names: dict[str, set[str]] = {}
    for mutant in mutants:
        for test in mutant.tests:
            problem = _problem_of_ranks(test) if test.startswith(RANKS) else _problem_of(test, names)
            if problem:
                raise ListError(
                    f"{mutant.name} names {test!r}: {problem} Update `tests` in tests/mutants/rooms/{mutant.room}.toml."
                )


def _problem_of(test: str, names: dict[str, set[str]]) -> str:
    file, *parts = test.split("::")
    if not (REPOSITORY / file).is_file():
        return "there is no such file."
    if file not in names:
        tree = ast.parse((REPOSITORY / file).read_text(encoding="utf-8"))
        names[file] = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    unknown = [part for part in (p.split("[")[0] for p in parts) if part not in names[file]]
    return f"{file} has no test {unknown[0]}." if unknown else ""


def _problem_of_ranks(test: str) -> str:
    words = test.removeprefix(RANKS).split()
    if len(words) < 3 or not words[1].isdigit():
        return 'legal is "ranks: PROGRAM RANKS CASE...".'
    file = TESTS / "multi_process" / f"{words[0]}.py"
    if not file.is_file():
        return f"there is no {file.relative_to(REPOSITORY)}."
    text = file.read_text(encoding="utf-8")
    unknown = [case for case in words[2:] if case not in text]
    return f"{words[0]} has no case {unknown[0]}." if unknown else ""
