"""`python -m tests.parity FOLDER...`: reproduce the outputs of fixture folders; exit 1 for a missed one or no fixture.

The kind of a fixture (key `fixture` of its config.json, else the name of its folder) is the name of a module of this
folder, with two functions: `compute(fixture)` returns our outputs by name, `tolerance(name)` the legal error of one.
Outputs that must not be matched, or that nothing can compute, are in its `LEFT_OUT`, each with the reason.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

import torch

from tests.parity.fixture import Fixture, Line, compare

NOT_KINDS = {"__init__", "__main__", "fixture", "bagel_rows"}


class UnknownKind(Exception):
    """No module computes a fixture."""


def kinds() -> list[str]:
    names = {file.stem for file in Path(__file__).parent.glob("*.py")}
    return sorted(name for name in names - NOT_KINDS if not name.startswith("test_"))


def check(folder: Path) -> list[Line]:
    """Verdicts on all outputs of one fixture folder. Raises UnknownKind for another kind."""
    fixture = Fixture.read(folder)
    if fixture.kind not in kinds():
        raise UnknownKind(f"{folder} is a fixture of kind {fixture.kind!r}; known kinds: {', '.join(kinds())}.")
    module = importlib.import_module(f"tests.parity.{fixture.kind}")
    left_out = vars(module).get("LEFT_OUT", {})
    expected = {name: value for name, value in fixture.outputs.items() if name not in left_out}
    return compare(expected, module.compute(fixture), module.tolerance)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    torch.set_num_threads(1)
    missed = 0
    for folder in parser.parse_args().folders:
        if folder.is_file():
            print(f"{folder} is left out: a fixture is a folder\n")
            continue
        if not (folder / "config.json").is_file():
            print(f"{folder} is not a fixture: it has no config.json\n")
            missed += 1
            continue
        try:
            lines = check(folder)
        except UnknownKind as error:
            print(f"{error.args[0]}\n")
            missed += 1
            continue
        print(folder, *lines, sep="\n")
        misses = sum(not line.ok for line in lines)
        print(f"{len(lines) - misses} of {len(lines)} outputs reproduced\n")
        missed += misses
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
