"""What to change so that a run fits, the cheapest first, estimated from the parts of a plan that does not."""

from __future__ import annotations

from megaunigame.planning.plan import STATES, Plan

MOST_NODES = 1024
LIVE = "activations, gathered weights, whole gradients"


def advice(plan: Plan, *, checkpointing: bool, lora: bool, offload: bool) -> str:
    """One line that says what to type. The arguments say what the recipe has already."""
    over = plan.total - plan.cluster.gpu.memory
    if over <= 0:
        return "fits"
    if not checkpointing:
        saved = plan.memory[LIVE] - max(plan.checkpointed.peak, plan.checkpointed.attack_peak)
        if saved >= over:
            return "type model.gradient_checkpointing=true"
    kept = sum((plan.step if checkpointing else plan.checkpointed).kept.values())
    rows = sum(count for terms in plan.rows.values() for count in terms.values())
    if kept // 2 >= over and rows > len(plan.passes):
        return (
            "halve the rows of the objectives and double batch.accumulation"
            f" (now {plan.accumulation}){'' if checkpointing else ', with model.gradient_checkpointing=true'}"
        )
    trained = sum(elements for elements, is_trained in plan.shape.parameters if is_trained)
    gradients = STATES * trained // plan.cluster.ranks
    if not lora and gradients + _whole_gradients(plan) >= over:
        return "type model.train=lora"
    if (nodes := _nodes(plan, over)) is not None:
        return f"use --nodes {nodes}: slices of weights, gradients and optimizer become smaller"
    if not offload and plan.stage == 3:
        return "type engine.ds_config=ds_configs/zero3_offload.json, with fewer rows or a smaller model.max_length if need be"
    return "type a smaller model.max_length, or plan for a GPU with more memory"


def _whole_gradients(plan: Plan) -> int:
    """Weight gradients that wait for another pass: what the peak holds besides graphs and gathered weights."""
    return max(0, plan.step.peak - sum(plan.step.kept.values()) - plan.step.gathered_at_once)


def _nodes(plan: Plan, over: float) -> int | None:
    """The least number of nodes, a multiple of the present, whose smaller slices save `over` bytes."""
    sliced = sum(plan.memory.get(name, 0) for name in ("weights", "gradients", "optimizer"))
    nodes = plan.cluster.nodes
    while nodes < MOST_NODES:
        nodes *= 2
        if plan.stage == 3 and sliced * (1 - plan.cluster.nodes / nodes) >= over:
            return nodes
    return None
