"""Memory of a rank as planned by megaunigame plan, to compare with the measured one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from megaunigame.config import Recipe, as_yaml
from megaunigame.shipped import program

OF_A_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def planned_bytes(recipe: Recipe, ranks: int) -> int | None:
    """Total bytes of one GPU of `ranks`; None, with the reason on stderr, if the recipe cannot be planned.

    In a separate process: a plan needs a fake process group, and this process is in a real one.
    """
    environment = {name: value for name, value in os.environ.items() if name not in OF_A_LAUNCHER}
    with tempfile.TemporaryDirectory(prefix="megaunigame-") as folder:
        file, numbers = Path(folder) / "recipe.yaml", Path(folder) / "plan.json"
        file.write_text(as_yaml(recipe))
        command = [sys.executable, *program("plan"), str(file), "--gpus-per-node", str(ranks), "--json", str(numbers)]
        done = subprocess.run(command, env={**environment, "DS_ACCELERATOR": "cpu"}, capture_output=True, text=True)
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1:]
            print(f"{recipe.name} is profiled without a plan of its memory. {' '.join(reason)}", file=sys.stderr, flush=True)
            return None
        return json.loads(numbers.read_text())["total"]
