"""launch/plan.py as it is typed."""

from __future__ import annotations

from tests.multi_process.launcher import run_script


def test_help_names_the_gpus():
    shown = run_script("launch/plan.py", "--help").stdout
    assert "a100-80g" in shown and "mi300x" in shown


def test_a_file_that_cannot_be_written_is_an_error_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    done = run_script("launch/plan.py", "launch/recipes/tiny_sft.yaml", "--json", str(tmp_path / "file" / "plan.json"))
    assert done.returncode == 2 and "--json" in done.stderr and "rehearsing" not in done.stderr
