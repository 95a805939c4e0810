"""A LLaVA JSON file and a folder of photographs: packed, then trained on with the demo's recipe on two processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import skimage

from tests.multi_process.launcher import REPOSITORY, free_port, run_script

PHOTOGRAPHS = Path(skimage.__file__).parent / "data"
STEPS = 20


@pytest.mark.ranks
@pytest.mark.timeout(400)
def test_twenty_steps_on_photographs(tmp_path):
    run_folder = tmp_path / "run"
    pack = ["-m", "data_prep", "pack", "--format", "llava-json", "--json", "data_prep/examples/photographs.json"]
    run_script(*pack, "--image-root", PHOTOGRAPHS, "--out", tmp_path / "shards", check=True)
    launcher = Path(sys.executable).with_name("deepspeed")
    train = [launcher, "--num_gpus", "2", "--master_port", str(free_port()), "launch/train.py", "launch/recipes/tiny_sft.yaml"]
    overrides = [
        f"data.scenes.shards={tmp_path / 'shards'}", "objectives={understanding: {rows: 2, stream: scenes}}",
        "evaluation.suites={}", f"schedule={{steps: {STEPS}}}", "optimizer.lr=2e-3", f"output={run_folder}",
    ]  # fmt: skip
    subprocess.run([*train, *overrides], cwd=REPOSITORY, check=True)
    losses = [json.loads(line)["loss/understanding"] for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == STEPS
    # 22 conversations in 20 steps of 4 rows: the adapters can learn these answers almost by heart.
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5]), losses
    assert (run_folder / "report.html").stat().st_size > 10_000
