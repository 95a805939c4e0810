"""launch/plan.py as it is typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "launch/plan.py", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


def test_help_names_the_gpus() -> None:
    shown = plan("--help").stdout
    assert "a100-80g" in shown and "mi300x" in shown


def test_a_file_that_cannot_be_written_is_an_error_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = plan("launch/recipes/tiny_sft.yaml", "--json", str(tmp_path / "file" / "plan.json"))
    assert done.returncode == 2 and "--json" in done.stderr and "rehearsing" not in done.stderr
