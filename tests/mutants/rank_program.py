"""Cases of a rank program as one test, for mutants that only a launch notices. Given to pytest by its name alone."""

from __future__ import annotations

import os
from pathlib import Path

from tests.multi_process.launcher import run_ranks
from tests.multi_process.tiny_run import write_data, write_edits, write_families, write_long_world, write_pictures
from tests.mutants.listed import VARIABLE


def test_cases(tmp_path: Path) -> None:
    program, ranks, *cases = os.environ[VARIABLE].split()
    home = write_families(tmp_path)
    write_data(home / "shards")
    write_edits(home / "edits")
    write_pictures(home / "pictures")
    write_long_world(home)
    said = run_ranks(f"tests.multi_process.{program}", int(ranks), home, *cases, timeout=200)[0]
    reported = [line.split(":")[0] for line in said.splitlines()]
    assert [case for case in cases if case not in reported] == []
