"""The table of docs/mutants.md, from a file of verdicts."""

from __future__ import annotations

from collections.abc import Iterable

from tests.mutants.listed import REPOSITORY, Mutant
from tests.mutants.verdicts import NOTICED, TIMEOUT, Verdicts

PAGE = REPOSITORY / "docs" / "mutants.md"
BEGIN, END = "<!-- mutants: written by tests/mutants -->", "<!-- end of mutants -->"


def table(mutants: Iterable[Mutant], verdicts: Verdicts) -> str:
    """Rooms with their numbers, then every mutant that no test noticed, with what it breaks or why it breaks nothing."""
    mutants = list(mutants)
    lines = ["| Room | mutants | noticed | not noticed | not run | equivalent |", "|---|---|---|---|---|---|"]
    sums = [0] * 5
    for room in sorted({mutant.room for mutant in mutants}):
        numbers = _numbers([mutant for mutant in mutants if mutant.room == room], verdicts)
        sums = [a + b for a, b in zip(sums, numbers, strict=True)]
        lines.append(f"| {room} | {' | '.join(map(str, numbers))} |")
    lines.append(f"| all | {' | '.join(map(str, sums))} |")
    survivors = [m for m in mutants if not m.equivalent and (v := verdicts.of(m)) and v.outcome not in (NOTICED, TIMEOUT)]
    lines += _listing("Not noticed", survivors, [m.breaks for m in survivors])
    equivalent = [m for m in mutants if m.equivalent]
    lines += _listing("Equivalent: no test can notice them", equivalent, [m.equivalent for m in equivalent])
    return "\n".join(lines)


def _numbers(mutants: list[Mutant], verdicts: Verdicts) -> list[int]:
    judged = [m for m in mutants if not m.equivalent]
    outcomes = [verdict.outcome if (verdict := verdicts.of(m)) else None for m in judged]
    noticed = sum(outcome in (NOTICED, TIMEOUT) for outcome in outcomes)
    missing = outcomes.count(None)
    return [len(judged), noticed, len(judged) - noticed - missing, missing, len(mutants) - len(judged)]


def _listing(title: str, mutants: list[Mutant], words: list[str]) -> list[str]:
    if not mutants:
        return []
    rows = [f"| `{m.name}` | `{m.file}` | {text.replace('|', chr(92) + '|')} |" for m, text in zip(mutants, words, strict=True)]
    return ["", f"### {title}", "", "| Mutant | File | Words |", "|---|---|---|", *rows]


def with_table(text: str, written: str) -> str:
    """The page with another table. Raises ValueError without its two marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} has no lines `{BEGIN}` and `{END}`, between which the table stands.")
    return f"{before}{BEGIN}\n\n{written}\n\n{END}{after}"


def write_page(mutants: Iterable[Mutant], verdicts: Verdicts) -> None:
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), table(mutants, verdicts)), encoding="utf-8")
