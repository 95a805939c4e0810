"""Rank program: the plan of every family against the engine, on ZeRO-3. Elements of a rank and gathered bytes are exact.

python -m tests.multi_process.plans HOME [CASE...]     (started once per rank by tests/multi_process/launcher.py)
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path

from megaunigame.config import Recipe, load_recipe
from megaunigame.models.base import UnifiedModel
from megaunigame.parallel.ranks import Ranks
from megaunigame.planning.check import check
from megaunigame.planning.machines import cluster
from megaunigame.planning.plan import Plan, make_plan
from megaunigame.registry import available
from tests.multi_process.programs import CHECKPOINTING, LORA, play
from tests.multi_process.tiny_run import write_recipe

RANKS = 2
KNOBS = {
    **{"stage": 3, "overlap_comm": False, "stage3_gather_16bit_weights_on_model_save": False},
    **{"stage3_prefetch_bucket_size": 9000, "stage3_param_persistence_threshold": 200},
    **{"stage3_max_live_parameters": 40000, "stage3_max_reuse_distance": 20000},
}
"""So small that the coordinator prefetches, releases and keeps weights of the tiny models."""
FAMILIES = available("models", UnifiedModel)
CASES = {family: {"model": {"family": family, **CHECKPOINTING}} for family in FAMILIES}
CASES |= {f"{family}_lora": {"model": {"family": family, **LORA}} for family in FAMILIES}
CASES["janus_dora"] = {"model": {**LORA, "lora": {**LORA["lora"], "dora": True}}}


def recipe_of(case: str, home: Path) -> Recipe:
    """Each rank writes its own files."""
    folder = home / f"planned-{os.environ['RANK']}"
    folder.mkdir(exist_ok=True)
    (folder / "knobs.json").write_text(json.dumps({"zero_optimization": KNOBS}))
    precision = "fp32" if case == "janus_dora" else "bf16"
    engine = {"precision": precision, "ds_config": str(folder / "knobs.json")}
    recipe = write_recipe(folder / f"{case}.yaml", home, engine=engine, **CASES[case])
    return load_recipe(str(recipe), [f"output={home / 'runs' / case}"])


def planned(case: str, home: Path) -> Plan:
    return make_plan(recipe_of(case, home), cluster("h100-80g", 1, RANKS), like_a_run=True)


def run(plans: dict[str, Plan], case: str, settings: dict, home: Path, world: Ranks) -> str:
    checked = check(plans[case], recipe_of(case, home), home / "runs" / case)
    assert len(checked) == 2 and all(c.planned == c.found > 0 for c in checked), (case, *map(str, checked))
    return "; ".join(map(str, checked))


if __name__ == "__main__":
    # Before the ranks meet: a plan pretends to have a process group.
    home, chosen = Path(sys.argv[1]), sys.argv[2:] or list(CASES)
    plans = {case: planned(case, home) for case in chosen}
    assert planned(chosen[0], home).to_dict() == plans[chosen[0]].to_dict(), "a plan depends on those before it"
    play(partial(run, plans), CASES, {})
