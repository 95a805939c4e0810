"""Writes docs/gpu.md from the results of tests/gpu/measure.py; without results it says how to get them.

python -m tests.gpu.write_page
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megaunigame.profiling.text import short, short_bytes
from tests.gpu.shapes import SHAPES

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE, RESULTS = REPOSITORY / "docs" / "gpu.md", REPOSITORY / "runs" / "gpu"
HEAD = """# On a GPU

This page is written by `python -m tests.gpu.write_page`; do not edit it.

`make test-gpu` runs on a machine with one NVIDIA GPU, without network and without any checkpoint:

- losses and gradients of all passes of all families on the GPU and on the CPU, in float32 and bf16, and with
  `attention: flash_attention_2` and `flash_attention_3` where their packages are installed and the GPU is one of theirs;
- the same with compiled layers, and with the kernels of liger-kernel where it is installed, against plain ones on the GPU;
- tiny runs through `launch/train.py` over NCCL: fine-tuning, UniGame in both modes, UniMRG, AIA, with adapters and whole
  models, with loader workers, saved and resumed;
- some of these with `engine.deterministic`: a run that was resumed reports the same numbers as one that was not;
- `launch/profile.py` on the shapes below, with random weights, one GPU, one micro-step per update. It takes a while: drawing
  and partitioning 38 B weights alone needs minutes.

`constraints.txt` pins a torch that is built for CUDA 13.0, which needs an NVIDIA driver of release 580 or newer. With an older
driver, install a torch built for an older CUDA into `.venv`.

No data is needed. Results and logs are in `runs/gpu/SHAPE/`. A shape that runs out of memory, or that is refused because it
would (`CapacityError`), is "does not fit" in the table; any other failure ends the target. One shape alone:
`python -m tests.gpu.measure janus_7b_lora` (names: `tests/gpu/shapes.py`). For numbers of another recipe, or of several
GPUs: `launch/profile.py` with the settings below, [profiling.md](profiling.md). `model.groups=[]` empties the list of a recipe
that trains whole groups, because adapters are trained instead. Without a GPU, [planning.md](planning.md) estimates the same
shapes.
"""
TITLES = ["shape", "step, s", "tokens/s", "useful tokens/s", "FLOPs a step", "MFU", "peak memory"]


def page(results: Sequence[dict[str, Any]]) -> str:
    """The page as Markdown. `results`: as `measure` writes them, in any order; `measured: null` is a shape that did not fit."""
    parts = [HEAD]
    if not results:
        parts.append("## Measured\n\nNot measured yet. `make test-gpu` writes the numbers here.\n")
    for head in sorted({(r["card"], r["memory"], r["torch"], r["deepspeed"], r["date"]) for r in results}):
        card, memory, torch_version, deepspeed_version, day = head
        rows = [r for r in results if (r["card"], r["memory"], r["torch"], r["deepspeed"], r["date"]) == head]
        rows.sort(key=lambda r: list(SHAPES).index(r["name"]))
        lines = [TITLES, ["---"] * len(TITLES), *(_row(r) for r in rows)]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        versions = f"{short_bytes(memory)}, torch {torch_version}, deepspeed {deepspeed_version}, {day}"
        parts.append(f"## {card}\n\n{versions}\n\n{table}\n")
    commands = "\n".join(shlex.join(["python", *shape.command]) for shape in SHAPES.values())
    parts.append(f"## The commands\n\n```bash\n{commands}\n```\n")
    return "\n".join(parts)


def _row(result: dict[str, Any]) -> list[str]:
    label, m = SHAPES[result["name"]].label, result["measured"]
    if m is None:
        return [label, "does not fit", *["-"] * (len(TITLES) - 2)]
    numbers = [f"{m['seconds']:.2f}", f"{m['tokens_per_second']:,.0f}", f"{m['useful_tokens_per_second']:,.0f}"]
    mfu = "-" if m["mfu"] is None else f"{m['mfu']:.1%}"
    return [label, *numbers, short(m["flops"]), mfu, short_bytes(m["peak_memory_bytes"])]


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The results in `folder`."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*/result.json"))]


if __name__ == "__main__":
    PAGE.write_text(page(read_results(RESULTS)))
