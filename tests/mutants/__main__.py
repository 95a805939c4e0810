"""Plants the mutants of tests/mutants/rooms one at a time into a copy of the tree, and says which of them the tests notice.

    python -m tests.mutants                          what is not judged yet; then docs/mutants.md
    python -m tests.mutants --sample 40 --seed 7     of 40 mutants drawn with this seed
    python -m tests.mutants --room step --minutes 10
    python -m tests.mutants --room data --results /tmp/a.json --no-page     as a second process
    python -m tests.mutants --merge /tmp/a.json      its verdicts too; nothing is judged

Verdicts are in tests/mutants/verdicts.json. A mutant is judged again when it, its file or its tests have changed. Exit
code 1: a mutant was not noticed.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.mutants.judging import Judge
from tests.mutants.listed import RANKS, REPOSITORY, ListError, Mutant, check_tests, listed
from tests.mutants.trees import Tree
from tests.mutants.verdicts import BROKEN, SURVIVED, VERDICTS, Verdicts
from tests.mutants.warm import import_frameworks
from tests.mutants.write_page import PAGE, write_page

LOGS = REPOSITORY / ".pytest_cache" / "mutant_logs"


def options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--room", nargs="+", help="mutants of these rooms alone, in this order")
    parser.add_argument("--id", nargs="+", help="these mutants alone, as ROOM/ID")
    parser.add_argument("--sample", type=int, help="only so many, drawn with --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without-launches", action="store_true", help="leave out mutants that only a launch of ranks notices")
    parser.add_argument("--minutes", type=float, help="begin no mutant after so many minutes")
    parser.add_argument("--again", action="store_true", help="judge also what is judged")
    parser.add_argument("--results", type=Path, default=VERDICTS, help="file of verdicts")
    parser.add_argument("--logs", type=Path, default=LOGS, help="folder of what the tests said")
    parser.add_argument("--merge", type=Path, nargs="*", help="take over the verdicts of these files, and judge nothing")
    parser.add_argument("--no-page", action="store_true", help="do not write docs/mutants.md")
    return parser.parse_args(arguments)


def chosen(given: argparse.Namespace) -> list[Mutant]:
    """Mutants to judge, without equivalent ones. Raises ListError."""
    found = [mutant for room in given.room for mutant in listed(room)] if given.room else listed()
    mutants = [mutant for mutant in found if not mutant.equivalent]
    if given.id:
        unknown = set(given.id) - {mutant.name for mutant in mutants}
        if unknown:
            raise ListError(f"There is no mutant {', '.join(sorted(unknown))}. `id` has the form ROOM/ID.")
        mutants = [mutant for mutant in mutants if mutant.name in given.id]
    if given.without_launches:
        mutants = [mutant for mutant in mutants if not any(test.startswith(RANKS) for test in mutant.tests)]
    if given.sample is not None and given.sample < len(mutants):
        mutants = random.Random(given.seed).sample(mutants, given.sample)
    for mutant in mutants:
        mutant.applied_to((REPOSITORY / mutant.file).read_text(encoding="utf-8"))
    check_tests(mutants)
    return mutants


def main(arguments: list[str]) -> int:
    given = options(arguments)
    verdicts = Verdicts(given.results)
    try:
        mutants = chosen(given)
    except ListError as error:
        print(error, file=sys.stderr)
        return 2
    if given.merge is None:
        judge_all(mutants, verdicts, given)
    else:
        for file in given.merge:
            verdicts.merge(Verdicts(file), mutants)
    judged = [(mutant, verdict) for mutant in mutants if (verdict := verdicts.of(mutant))]
    missed = [(mutant, verdict) for mutant, verdict in judged if verdict.outcome in (SURVIVED, BROKEN)]
    for mutant, verdict in missed:
        print(f"{verdict.outcome}: {mutant.name} ({mutant.file}): {mutant.breaks}")
    share = 100 * (1 - len(missed) / len(judged)) if judged else 0.0
    print(f"{len(judged) - len(missed)} of {len(judged)} judged mutants noticed: {share:.1f} %")
    if not given.no_page:
        verdicts.keep({mutant.name for mutant in listed() if not mutant.equivalent})
        write_page(listed(), verdicts)
        print(f"{PAGE.relative_to(REPOSITORY)} is written")
    return 1 if missed else 0


def judge_all(mutants: list[Mutant], verdicts: Verdicts, given: argparse.Namespace) -> None:
    """Those that have no verdict yet, one after the other."""
    waiting = [mutant for mutant in mutants if given.again or verdicts.of(mutant) is None]
    print(f"{len(mutants)} mutants, {len(mutants) - len(waiting)} of them judged before", flush=True)
    if not waiting:
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # the tree is removed, and no test goes on
    started = time.monotonic()
    import_frameworks()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        judge = Judge(Tree(Path(folder, "tree")), given.logs)
        for number, mutant in enumerate(waiting, 1):
            elapsed = time.monotonic() - started
            if given.minutes is not None and elapsed > 60 * given.minutes:
                print(f"{len(waiting) - number + 1} mutants are left after {elapsed / 60:.0f} minutes: type the same again")
                break
            verdict = judge.judge(mutant)
            verdicts.add(mutant, verdict)
            left = (time.monotonic() - started) / number * (len(waiting) - number)
            by = f" by {verdict.by}" if verdict.by else ""
            print(
                f"[{number}/{len(waiting)}] {mutant.name}: {verdict.outcome} in {verdict.seconds:.0f} s{by}; "
                f"{left / 60:.0f} min left",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
