"""Ranks that are about to make different steps say so, all of them, before the first pass."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from megaunigame.errors import LockstepError
from megaunigame.step.inputs import GenerateInputs, UnderstandInputs
from megaunigame.step.micro import MicroStep, Step
from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, StepPlan
from megaunigame.training.lockstep import LockstepGuard, described
from tests.passes import pass_inputs
from tests.worlds import OneRank, on_ranks

PLAN = StepPlan((RowRequest("answers", UNDERSTAND, "train", 2), RowRequest("asked", UNDERSTAND, "train", 1, aside=True)))


def understand_inputs(rows: int, length: int = 4, **fields) -> UnderstandInputs:
    return pass_inputs(UnderstandInputs, torch.zeros(rows, length, dtype=torch.long), **fields)


def step(
    number: int = 4,
    lr: float = 1e-3,
    plan: StepPlan = PLAN,
    rows: int = 2,
    aside: int = 1,
    micro_steps: int = 2,
    dealing: int = 7,
    **inputs,
) -> Step:
    made = [
        MicroStep(n, plan, {UNDERSTAND: understand_inputs(rows, **inputs)}, {"asked": understand_inputs(aside)}, dealing)
        for n in range(micro_steps)
    ]
    return Step(number, lr, made, 1.0)


def outcomes(*steps: Step) -> list[str]:
    def check(world) -> str:
        try:
            LockstepGuard(world).check(steps[world.rank])
        except LockstepError as error:
            return str(error)
        return ""

    return on_ranks(len(steps), check)


def test_ranks_with_other_data_are_in_step():
    assert outcomes(step(), step(length=9, keys=["a", "b"]), step()) == ["", "", ""]


@pytest.mark.fault(
    "ranks with different plans of a step", does="LockstepError on all, before the step", lost="nothing of the step"
)
@pytest.mark.parametrize(
    ("other", "named"),
    [
        (dict(number=5), "rank 1: step 6, lr 0.001"),
        (dict(lr=2e-3), "rank 1: step 5, lr 0.002"),
        (dict(micro_steps=1), "rank 1: no such micro-step"),
        (dict(rows=3), "passes {'understand': 3}"),
        (dict(aside=2), "aside {'asked': 2}"),
        (dict(dealing=8), "samples dealt 00000008"),
        (dict(plan=StepPlan(PLAN.requests[:1])), "terms {'answers': ('understand', 'train', 2)}"),
        (
            dict(
                plan=dataclasses.replace(PLAN, requests=(dataclasses.replace(PLAN.requests[0], stream=None), PLAN.requests[1]))
            ),
            "None",
        ),
    ],
)
def test_what_decides_the_calls_must_be_the_same(other, named):
    first, second, third = outcomes(step(), step(**other), step())
    assert first == second == third and named in first
    assert "ranks 0, 2: " in first and "none was begun" in first


@pytest.mark.fault(
    "ranks that share their rows have read different ones", does="LockstepError on all, before the step", lost="nothing"
)
@pytest.mark.parametrize("other", [dict(length=5), dict(keys=["a", "c"])])
def test_ranks_that_share_their_rows_must_have_the_same(other):
    def check(world) -> str:
        # Ranks 0, 1 and 2 share rows; their group is a world of its own here.
        given = {"length": 4, "keys": ["a", "b"], **(other if world.rank == 1 else {})}
        try:
            LockstepGuard(world, world).check(step(**given))
        except LockstepError as error:
            return str(error)
        return ""

    said = on_ranks(3, check)
    assert len({*said}) == 1 and "engine.sequence_ranks=3" in said[0] and "for step 5" in said[0]
    other.clear()
    assert on_ranks(3, check) == ["", "", ""]


def test_a_pass_that_only_one_rank_has_is_named():
    more = step()
    more.micro_steps[1].inputs[GENERATE] = pass_inputs(GenerateInputs, torch.zeros(1, 4, dtype=torch.long))
    first, _ = outcomes(step(), more)
    assert "micro-step 1: passes {'understand': 2, 'generate': 1}" in first


def test_the_guard_does_not_look_at_tensors_on_the_device():
    """Meta tensors have no content, and their values cannot be brought to the host."""
    device = torch.device("meta")
    seen = step()
    for micro in seen.micro_steps:
        micro.inputs = {name: inputs.to(device) for name, inputs in micro.inputs.items()}
    LockstepGuard(OneRank(2, device)).check(seen)
    assert described(seen) == described(step())
