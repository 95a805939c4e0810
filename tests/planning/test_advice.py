"""What to change, of plans whose parts are known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megaunigame.engine.memory_plan import GroupSize
from megaunigame.parallel.peaks import PEAKS
from megaunigame.planning.advice import advice
from megaunigame.planning.changes import parts
from megaunigame.planning.machines import Cluster, Gpu
from megaunigame.planning.operations import Operations
from megaunigame.planning.plan import LATE, LIVE, Plan
from megaunigame.planning.rehearsal import MicroStepCost, Shape
from megaunigame.planning.units import GIB

NONE = Operations()


def rehearsed(kept: float, peak: float, gathered: float, aside_peak: float = 0) -> MicroStepCost:
    """Sizes in GiB; half of what is kept belongs to each of two passes."""
    halves = {name: int(kept * GIB / 2) for name in ("generate", "understand")}
    numbers = {name: int(size * GIB) for name, size in (("peak", peak), ("gathered_at_once", gathered))}
    forward = {name: Operations(model=100) for name in halves}
    attack = (int(aside_peak * GIB), 0, NONE)
    backward = Operations(model=300, again=150)
    return MicroStepCost(halves, numbers["peak"], numbers["gathered_at_once"], 0, forward, backward, 0, *attack)


PLAN = Plan(
    name="made up",
    source="size 7b of nobody",
    cluster=Cluster(Gpu("small", 80 * GIB, PEAKS["NVIDIA A100"], 1e9, 1e9), 1, 4),
    stage=3,
    precision="bf16",
    checkpointing=True,
    lora=False,
    global_rows=8 * 4 * 24,
    passes=("generate", "understand"),
    rows={"generate": {"pixel": 4}, "understand": {"clean": 2, "hard": 2}},
    accumulation=24,
    sequence_ranks=1,
    shape=Shape([GroupSize("lm", 8 * GIB, 8 * GIB), GroupSize("dit", GIB, GIB)], [(9 * GIB, True)], 0, {}, {}),
    elements_per_rank=9 * GIB // 4,
    # In GiB: 9 * 2 / 4, 9 * 4 / 4, 9 * 12 / 4; then 20 of graphs, 6 gathered, 14 of waiting gradients.
    memory={"weights": 9 * GIB // 2, "gradients": 9 * GIB, "optimizer": 27 * GIB, LIVE: 40 * GIB, LATE: GIB // 2, "rest": GIB},
    host={"hard buffer": 3 * GIB},
    step=rehearsed(kept=20, peak=40, gathered=6, aside_peak=5),
    checkpointed=rehearsed(kept=20, peak=40, gathered=6, aside_peak=5),
    plain=rehearsed(kept=20, peak=40, gathered=6),
    gathered=0,
    aside_gathered=0,
    updated=0,
    reduced=0,
    notes=(),
)
TOTAL = 4.5 + 9 + 27 + 40 + 0.5 + 1


def of(memory: float, plan: Plan = PLAN) -> list[str]:
    """The advice where a GPU has `memory` GiB."""
    return advice(replace(plan, cluster=replace(plan.cluster, gpu=replace(plan.cluster.gpu, memory=memory * GIB))))


def typed(lines: list[str]) -> dict[str, float]:
    """What is typed -> estimate in GiB."""
    found = {}
    for line in lines[1:]:
        what, _, rest = line.strip().partition(": ")
        found[what] = float(rest.rpartition("; ")[2].removesuffix(" GiB"))
    return found


HALF = "half the rows of every objective and twice the batch.accumulation"
OFFLOAD = "engine.ds_config=ds_configs/zero3_offload.json"
LORA = "model.train=lora"


def test_the_parts_of_a_plan_are_its_total():
    assert parts(PLAN).total == PLAN.total == TOTAL * GIB
    assert parts(PLAN).whole == 14 * GIB
    assert of(TOTAL)[0].startswith("fits: 82.00 GiB of 82.00 GiB; by estimate ")


def test_a_plan_that_fits_says_what_it_saves():
    """The rehearsal without checkpointing had whole weights: gathered ones come on top. A rank has 1/4 of the states."""
    without, whole = TOTAL - 40 + 40 + 6, TOTAL + 3 * (4.5 + 9 + 27)
    said = f"{without:.2f} GiB without gradient checkpointing, {whole:.2f} GiB with weights and states whole"
    assert of(100) == [f"fits: 82.00 GiB of 100.00 GiB; by estimate {said}"]
    assert f"{whole - 3 * 4.5:.2f} GiB with weights" in of(100, replace(PLAN, stage=2))[0], "whole under ZeRO-2 anyway"
    alone = replace(PLAN, checkpointing=False, cluster=replace(PLAN.cluster, gpus_per_node=1))
    assert of(100, alone) == ["fits: 82.00 GiB of 100.00 GiB"]


def test_every_change_that_fits_alone_is_listed_with_its_price():
    lines = of(TOTAL - 9)
    assert lines[0].startswith("does not fit: 82.00 GiB of 73.00 GiB. One of these changes would do")
    slices = 4.5 + 9 + 27
    assert typed(lines) == {
        HALF: TOTAL - 10,
        LORA: TOTAL - 9 - 27 - 14,
        "--gpus-per-node 8": TOTAL - slices / 2,
        "--nodes 2": TOTAL - slices / 2,
        OFFLOAD: TOTAL - slices,
    }
    text = "\n".join(lines)
    assert "the same rows in 48 micro-steps" in text and "adapters only (not trained: dit)" in text
    assert "8 GPUs instead of 4" in text and "40.50 GiB of host memory a rank" in text


def test_nodes_share_out_the_rows_of_a_step():
    assert "--nodes 8" in typed(of(TOTAL - 35)) and "--nodes 2" not in typed(of(TOTAL - 35))
    odd = replace(PLAN, global_rows=8 * 4 * 3)
    assert not any("--" in change for change in typed(of(TOTAL - 9, odd))), "96 rows are 3 for each of 32, never 1.5 for 64"
    assert "--nodes 8" in typed(of(TOTAL - 35, replace(PLAN, global_rows=None)))


def test_an_attack_keeps_its_rows_when_the_others_are_halved():
    attacked = replace(PLAN, step=rehearsed(kept=20, peak=40, gathered=6, aside_peak=39))
    assert typed(of(TOTAL - 0.5, attacked))[HALF] == TOTAL - 1
    assert HALF not in typed(of(TOTAL - 9, attacked))
    single = replace(PLAN, rows={**PLAN.rows, "generate": {"pixel": 1}})
    assert HALF not in typed(of(TOTAL - 1, single))


def test_gradient_checkpointing_keeps_what_is_gathered():
    """Its rehearsal had whole weights, so that gathered ones come on top."""
    plain = replace(PLAN, checkpointing=False, checkpointed=rehearsed(kept=3, peak=12, gathered=0))
    lines = of(TOTAL - 9, plain)
    assert typed(lines)["model.gradient_checkpointing=true"] == TOTAL - 40 + 12 + 6
    assert "30% more operations" in lines[1]


def test_changes_are_combined_when_none_does_alone():
    lines = of(TOTAL - 50.2)
    assert "No change alone would do; together" in lines[0]
    found = typed(lines)
    assert found[f"{HALF} and {OFFLOAD}"] == TOTAL - 10 - 40.5
    assert f"{HALF} and {LORA}" in found and f"--nodes 2 and {OFFLOAD}" not in found
    plain = replace(PLAN, checkpointing=False, checkpointed=rehearsed(kept=18, peak=32, gathered=0))
    assert all(change.startswith("model.gradient_checkpointing=true and ") for change in typed(of(TOTAL - 50.2, plain)))
    assert of(2) == [
        "does not fit: 82.00 GiB of 2.00 GiB. Type a smaller model.max_length, or plan for a GPU with more memory."
    ]


def test_zero_2_may_become_zero_3():
    memory = {**PLAN.memory, "weights": 18 * GIB, LIVE: 34 * GIB}
    whole = replace(PLAN, stage=2, memory=memory, step=rehearsed(kept=20, peak=34, gathered=0))
    total, gathered = whole.total / GIB, 2 * 10**9 / GIB
    found = typed(of(total - 9, whole))["engine.ds_config=ds_configs/zero3.json"]
    assert found == pytest.approx(total - 13.5 + gathered, abs=0.01)


def test_offloading_twice_is_not_advised():
    states = {name: PLAN.memory[name] for name in ("weights", "gradients", "optimizer")}
    offloaded = replace(PLAN, memory={n: s for n, s in PLAN.memory.items() if n not in states}, host=states)
    assert not any("offload" in line for line in of(offloaded.total / GIB - 1, offloaded))
