"""A made-up run folder with every part a report can show."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

STEPS = 300
BEFORE, AFTER = 0, STEPS


def write_run(folder: Path) -> Path:
    """A run of 300 steps with an evaluation before and after."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text("name: demo\nobjectives:\n  understanding: {rows: 8}  # <8 rows>\n")
    (folder / "plan.txt").write_text("group      parameters  trained\nlm           2,050,000      yes\n")
    run = {
        "name": "tiny_sft <demo>",
        "command": "deepspeed --num_gpus 2 launch/train.py launch/recipes/tiny_sft.yaml schedule.steps=300",
        "started": "2026-01-05T10:00:00+00:00",
        "finished": "2026-01-05T10:04:10+00:00",
        "seconds": 250.2,
        "world_size": 2,
        "versions": {"python": "3.11", "torch": "2.14.1", "deepspeed": "0.19.8"},
    }
    (folder / "run.json").write_text(json.dumps(run))
    write_metrics(folder)
    write_evaluation(folder, BEFORE, trained=False)
    write_evaluation(folder, AFTER, trained=True)
    return folder


def write_metrics(folder: Path) -> None:
    rng = np.random.default_rng(0)
    with open(folder / "metrics.jsonl", "w") as file:
        for step in range(1, STEPS + 1):
            decay = math.exp(-step / 90)
            line: dict[str, Any] = {
                "step": step,
                "time": 1000.0 + step,
                "loss/understanding": 0.4 + 1.7 * decay + 0.12 * rng.normal(),
                "loss/caption": 3.1 + 1.4 * decay + 0.1 * rng.normal(),
                "loss/pixel": 2.4 + 2.2 * decay + 0.1 * rng.normal(),
                "loss/total": 5.9 + 5.3 * decay + 0.2 * rng.normal() if step != 17 else None,
                "optim/lr": 5e-4 * min(step / 20, 0.5 * (1 + math.cos(math.pi * step / STEPS))),
                "optim/grad_norm": 0.6 + decay * 2 + 0.3 * abs(rng.normal()),
                "perf/step_seconds": 0.8 + 0.1 * abs(rng.normal()),
                "perf/rows_per_second": 40 - 4 * abs(rng.normal()),
                "perf/tokens_per_second": 4100 - 300 * abs(rng.normal()),
                "perf/useful_tokens_per_second": 2050 - 150 * abs(rng.normal()),
                "perf/useful_token_share": 0.5 + 0.02 * rng.normal(),
                "perf/peak_memory_bytes": 3.0e9 + 1.0e7 * abs(rng.normal()),
                "perf/mfu": 0.31 + 0.01 * abs(rng.normal()),
                "perf/passes": 2.0,
                "data/bad_samples": 0.0,
                "data/wait_seconds": 0.01 * abs(rng.normal()),
            }
            file.write(json.dumps(line) + "\n")


def write_evaluation(folder: Path, step: int, trained: bool) -> None:
    home = folder / "evaluation"
    pictures = home / f"step-{step:08d}"
    shapes = [("color", 21.0, 94.2, 37.4), ("count", 31.0, 97.1, 25.0), ("leftmost", 38.5, 88.0, 37.0)]
    rows = [[kind, 310, after if trained else before, chance, 38.4] for kind, before, after, chance in shapes]
    rows.append(["mean of kinds", 930, 93.1 if trained else 30.2, 33.1, 38.4])
    columns = ["kind", "questions", "accuracy (%)", "chance (%)", "majority (%)"]
    asked, drawn = [], []
    for i, color in enumerate(["red", "green", "blue"]):
        file = f"val/asked-{i:04d}.png"
        _scene(pictures / file, i, 0.0)
        for question, answer in ((f"what color is the cube {i} ?", color), ("how many objects are there ?", "3")):
            said = answer if trained and not (i == 2 and answer == "3") else "purple"
            asked.append({"image": file, "question": question, "answer": answer, "predicted": said, "correct": said == answer})
        for column, noise in (("source", 0.0), ("through tokenizer", 0.1), ("generated", 0.3 if trained else 0.9)):
            file = f"draw/{i:04d}-{column.replace(' ', '-')}.png"
            _scene(pictures / file, i, noise)
            caption = f"a {color} cube left of a small yellow sphere"
            drawn.append({"file": file, "caption": caption, "row": str(i), "column": column})
    result = {
        "step": step,
        "seconds": 12.0,
        "suites": {
            "val": {
                "metrics": {"accuracy/mean": 0.9},
                "tables": [{"title": "Accuracy by kind of question", "columns": columns, "rows": rows}],
                "pictures": [],
                "questions": asked,
            },
            "draw": {"metrics": {}, "tables": [], "pictures": drawn, "questions": []},
        },
    }
    (home / f"step-{step:08d}.json").write_text(json.dumps(result))


def _scene(path: Path, seed: int, noise: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:64, 0:64]
    image = np.stack([90 + y, 110 + y, 140 + 0 * y], axis=-1).astype(float)
    for _ in range(3):
        cx, cy, radius = rng.uniform(12, 52), rng.uniform(20, 50), rng.uniform(6, 11)
        image[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = rng.uniform(40, 230, 3)
    image = image * (1 - noise) + noise * np.random.default_rng(9).uniform(0, 255, image.shape)
    Image.fromarray(image.astype(np.uint8)).save(path)


def write_attention(folder: Path, layers: int = 30, targets: bool = True, seed: int = 0) -> None:
    """A run of attention alignment: shares that move to their targets, and a suite that measured before and after."""
    rng = np.random.default_rng(seed)
    starts = {"generate": 0.85 - 0.5 * np.linspace(0, 1, layers), "understand": 0.05 + 0.1 * rng.random(layers)}
    aims = {"generate": np.where(np.arange(layers) < 25, 0.4, 0.2), "understand": np.linspace(0.1, 0.3, layers).round(1)}
    with open(folder / "metrics.jsonl", "a") as file:
        for step in range(1, STEPS + 1):
            line: dict[str, Any] = {"step": step, "time": 1000.0 + step}
            for name, start in starts.items():
                shares = aims[name] + (start - aims[name]) * math.exp(-step / 80) + 0.01 * rng.normal(size=layers)
                line |= {f"attention/{name}/layer_{i:02d}": v for i, v in enumerate(shares)}
                if targets:
                    line |= {f"attention/{name}/target_{i:02d}": v for i, v in enumerate(aims[name])}
                    line[f"attention/{name}/distance"] = float(np.abs(shares - aims[name]).mean())
                line[f"attention/{name}/first_token"] = 0.3 + 0.02 * rng.normal()
                line[f"attention/{name}/rows"] = 8.0
                line[f"attention/{name}/weight"] = 5.0
            file.write(json.dumps(line) + "\n")
    for step in (BEFORE, AFTER):
        path = folder / "evaluation" / f"step-{step:08d}.json"
        result = json.loads(path.read_text())
        shares = starts if step == BEFORE else {name: aim + 0.02 for name, aim in aims.items()}
        result["suites"]["attention"] = attention_result(shares, aims)
        path.write_text(json.dumps(result))


def attention_result(shares: dict[str, np.ndarray], aims: dict[str, np.ndarray]) -> dict[str, Any]:
    """As the suite `attention` leaves it."""
    metrics, tables = {}, []
    for name, values in shares.items():
        lines = {"layer_": values, "spread_": 0.1 * values, "first_token_": 0.2 * values, "target_": aims[name]}
        metrics |= {f"{name}/{what}{i:02d}": float(v) for what, line in lines.items() for i, v in enumerate(line)}
        rows = [[str(i), *(100 * float(line[i]) for line in lines.values())] for i in range(len(values))]
        tables.append({"title": name, "columns": ["layer", *lines], "rows": rows})
    return {"metrics": metrics, "tables": tables, "pictures": [], "questions": []}
