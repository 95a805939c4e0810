"""Profile the published shapes on this GPU, one process each, and write docs/gpu.md.

python -m tests.gpu.measure [NAME...]     (names of tests/gpu/shapes.py; results go to runs/gpu)
"""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date

import deepspeed
import torch

from tests.gpu.shapes import SHAPES
from tests.gpu.write_page import PAGE, RESULTS, page, read_results

OUT_OF_MEMORY = ("CUDA out of memory", "CapacityError: ")
"""What torch says, and what a launch script says when it refuses a run before it runs out."""


def measure(name: str) -> bool:
    """Profile one shape and write its result; False when it failed for another reason than memory."""
    out = RESULTS / name
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").unlink(missing_ok=True)
    with (out / "log.txt").open("w") as log:
        code = subprocess.run([sys.executable, *SHAPES[name].command, "--out", str(out)], stdout=log, stderr=log).returncode
    said = (out / "log.txt").read_text(errors="replace")
    too_large = code != 0 and does_not_fit(said)
    result = {
        "name": name,
        "card": torch.cuda.get_device_name(0),
        "memory": torch.cuda.get_device_properties(0).total_memory,
        "torch": torch.__version__,
        "deepspeed": deepspeed.__version__,
        "date": date.today().isoformat(),
        "measured": json.loads((out / "profile.json").read_text())[0] if code == 0 else None,
    }
    if code == 0 or too_large:
        (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
        return True
    print(f"{name} failed, see {out / 'log.txt'}:\n" + "\n".join(said.splitlines()[-10:]), file=sys.stderr)
    return False


def does_not_fit(said: str) -> bool:
    """Whether a command that failed, and said this, was too large for the GPU."""
    return any(words in said for words in OUT_OF_MEMORY)


if __name__ == "__main__":
    done = [measure(name) for name in sys.argv[1:] or SHAPES]
    PAGE.write_text(page(read_results(RESULTS)))
    sys.exit(0 if all(done) else 1)
