"""The notebook runs from its first cell to its last, in a folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.multi_process.launcher import REPOSITORY

NOTEBOOK = REPOSITORY / "docs" / "notebooks" / "quickstart.ipynb"
SEEN = """
print("drawn:", drawn.size, len(set(drawn.getdata())) > 100)
print("losses:", [entry["step"] for entry in losses] == [1, 2] and losses[0]["loss/total"] > 0)
print("trained:", trained.source.what.startswith("step 2 of the run"))
"""


@pytest.mark.ranks
@pytest.mark.timeout(240)
def test_the_quickstart_runs(tmp_path):
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 8 and all(not cell.get("outputs") for cell in notebook["cells"])
    (tmp_path / "quickstart.py").write_text("\n".join([*cells, SEEN]))
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TMPDIR": str(tmp_path), "DS_ACCELERATOR": "cpu"}
    run = subprocess.run([sys.executable, "quickstart.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert all(f"{what} True" in run.stdout for what in ("losses:", "trained:"))
    assert "drawn: (64, 64) True" in run.stdout
