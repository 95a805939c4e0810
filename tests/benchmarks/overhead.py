"""What the trainer and the engine cost next to a plain loop: `python -m tests.benchmarks.overhead`.

One process, one rank. The same rows, the same seeds, the shipped tiny Janus on scenes as in tiny_sft.yaml, float32. Ways to
train step in turn, so that a slow spell of the machine hits all: a plain loop of torch (the reference of the tests), ZeRO-2,
ZeRO-3, and ZeRO-3 with knobs that are not in `ds_configs/`. CPU seconds are those of the process; where other work shares the
cores they say more than the wall clock.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.recording import Cell, Table, at_most, run, spread
from tests.benchmarks.step_cases import case, write_scenes

RECIPE = "launch/recipes/tiny_sft.yaml"
PLAIN, ZERO2, ZERO3 = "plain loop", "ZeRO-2", "ZeRO-3"
FREEING, LEAVES = "ZeRO-3, freeing linear", "ZeRO-3, leaves"
OF_LEAVES = {"leaf_module": {"classes": [], "names": [f"model.language_model.layers.{number}" for number in range(1, 6)]}}
KNOBS = {FREEING: {"memory_efficient_linear": True}, LEAVES: OF_LEAVES}
"""Added to `zero_optimization` of zero3_cpu.json. A leaf is gathered whole, and its inside has no hooks; runs refuse leaves,
because `torch.autograd.grad` fails in them. The first layer is none: under LoRA its input has no gradient, and the engine then
ends the leaf before its weights have theirs."""
TARGETS = {ZERO2: 1.05, ZERO3: 1.15}
RATIO = "/ plain loop"


def ds_configs(home: Path) -> dict[str, str]:
    found = {ZERO2: "ds_configs/zero2.json", ZERO3: "ds_configs/zero3_cpu.json"}
    given = json.loads(Path(found[ZERO3]).read_text())["zero_optimization"]
    for number, (name, knobs) in enumerate(KNOBS.items()):
        file = home / f"knobs{number}.json"
        file.write_text(json.dumps({"zero_optimization": {**given, **knobs}}))
        found[name] = str(file)
    return found


def steppers(home: Path, train: str, rows: dict[str, Any], steps: int, only: list[str]) -> dict[str, Callable[[], Any]]:
    """Name -> one optimizer step of this way to train."""
    from megaunigame.engine import ds_config
    from megaunigame.parallel.ranks import start_world
    from tests.benchmarks.step_ranks import Case
    from tests.multi_process.plain_reference import PlainReference

    world, found = start_world(1), dict[str, Callable[[], Any]]()
    ds_config._check_leaves = lambda *_: None
    for name, file in ds_configs(home).items():
        if name not in only:
            continue
        own = {"engine.ds_config": file, "model.train": train, "model.lora.dropout": 0.0, "objectives": rows}
        told = case(f"case{len(found)}", RECIPE, home / "shards", home / "runs", steps, 0, own)
        made = Case(told, world)
        found[name] = lambda made=made: made.step(world)
    trainer = made.trainer
    plain = PlainReference(trainer.recipe, trainer.plan, trainer.objective_of, trainer.accumulation, 1)
    return {PLAIN: plain.step, **found}


def measure(options: argparse.Namespace) -> list[Table]:
    os.environ.update(DS_ACCELERATOR="cpu", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    rows = {
        "understanding": {"rows": 8, "stream": "scenes", "independent": True},
        "generation": {"caption_rows": options.captions, "pixel_rows": 0, "stream": "scenes"},
    }
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        write_scenes(home / "shards")
        ways = steppers(home, options.train, rows, options.rounds + options.warmup, options.ways)
        wall: dict[str, list[float]] = {name: [] for name in ways}
        cpu: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(options.warmup + options.rounds):
            for name, step in ways.items():
                began, used = time.perf_counter(), time.process_time()
                step()
                if number >= options.warmup:
                    wall[name].append(time.perf_counter() - began)
                    cpu[name].append(time.process_time() - used)
    lines: list[list[Cell]] = []
    for name in ways:
        ratios = spread(ours / base for ours, base in zip(cpu[name], cpu[PLAIN], strict=True))
        middle = statistics.median(cpu[name])
        ratios["median"] = middle / statistics.median(cpu[PLAIN])
        aim = at_most(TARGETS[name], RATIO) if name in TARGETS else None
        lines.append([name, middle, ratios, aim, statistics.median(wall[name])])
    return [Table(["way", "CPU s / step", RATIO, "aim", "wall s / step"], lines)]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--train", choices=["lora", "full"], default="lora")
    made.add_argument("--rounds", type=int, default=9, help="measured steps of each (default 9)")
    made.add_argument("--warmup", type=int, default=4, help="steps before (default 4): ZeRO-3 records its gathers")
    made.add_argument("--captions", type=int, default=0, help="caption rows, a second pass (default 0)")
    made.add_argument("--ways", nargs="*", default=[ZERO2, ZERO3, *KNOBS], help="ways to train next to the plain loop")
    return made


if __name__ == "__main__":
    run(parser(), measure)
