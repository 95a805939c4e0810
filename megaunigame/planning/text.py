"""A plan as text."""

from __future__ import annotations

from megaunigame.planning.machines import ACHIEVED_BANDWIDTH, ACHIEVED_FLOPS
from megaunigame.planning.plan import Plan
from megaunigame.planning.units import GIGA, TERA, between, gib, seconds, tera

NAME = 50
"""Width of the names, in characters."""


def describe(plan: Plan, advice: list[str]) -> str:
    """Parameters, rows, bytes of a GPU, traffic, operations, time, and whether it fits."""
    return "\n".join([*_model(plan), *_memory(plan), *_traffic(plan), *_operations(plan), *_time(plan), *advice])


def _model(plan: Plan) -> list[str]:
    groups = plan.shape.groups
    total, trained = sum(g.elements for g in groups), sum(g.trained for g in groups)
    cluster = plan.cluster
    lines = [
        f"{plan.name}: {cluster.nodes} x {cluster.gpus_per_node} {cluster.gpu.name}, ZeRO-{plan.stage}, {plan.precision}",
        f"shape: {plan.source}",
        f"parameters: {total:,}, of which {trained:,} trained",
    ]
    lines += [f"  {g.name:<20}{g.elements:>18,}{g.trained:>18,} trained" for g in groups]
    of_rank = "rank" if plan.sequence_ranks == 1 else f"{plan.sequence_ranks} ranks that share them"
    for name, terms in plan.rows.items():
        rows = ", ".join(f"{term} {count}" for term, count in terms.items())
        lines.append(f"{name} pass: {rows} rows a micro-step and {of_rank}")
    lines.append(f"micro-steps of an optimizer step: {plan.accumulation}")
    return lines


def _memory(plan: Plan) -> list[str]:
    lines = ["memory of one GPU, largest legal rows:"]
    lines += [f"  {name:<{NAME}}{gib(size):>12}" for name, size in plan.memory.items()]
    lines.append(f"  {'total':<{NAME}}{gib(plan.total):>12} of {gib(plan.cluster.gpu.memory)}")
    lines.append("of the activations:")
    for name in plan.passes:
        kept = f"{gib(plan.checkpointed.kept[name])} with, {gib(plan.plain.kept[name])} without"
        lines.append(f"  graph of the {name} pass: {kept} gradient checkpointing")
    lines.append(f"  a micro-step at its peak: {gib(plan.step.peak)}")
    if plan.step.aside_peak:
        lines.append(f"  players aside, at their peak: {gib(plan.step.aside_peak)}")
    if plan.step.gathered_at_once:
        lines.append(f"  gathered weights, most at once: {gib(plan.step.gathered_at_once)}")
    lines += [f"host memory of a rank: {name} {gib(size)}" for name, size in plan.host.items()]
    return lines


def _traffic(plan: Plan) -> list[str]:
    parts = [f"weights gathered {gib(plan.gathered)}"]
    if plan.aside_gathered:
        parts.append(f"for players aside {gib(plan.aside_gathered)}")
    if plan.updated:
        parts.append(f"updated weights gathered {gib(plan.updated)}")
    parts.append(f"gradients reduced {gib(plan.reduced)}")
    return [f"traffic of a rank in a step: {', '.join(parts)}"]


def _operations(plan: Plan) -> list[str]:
    step = plan.step
    forward = ", ".join(f"{name} forward {tera(operations.model)}" for name, operations in step.forward.items())
    lines = [f"operations of a rank in a micro-step: {forward}, backward {tera(step.backward.model)}"]
    if step.aside.total:
        every = f", every {plan.shape.rehearsed_every} steps" if plan.shape.rehearsed_every > 1 else ""
        lines.append(f"  players aside {tera(step.aside.model)}{every}")
    if again := step.learner.again + step.aside.again:
        lines.append(f"  computed again in the backward {tera(again)}")
    in_fp32 = step.learner.in_fp32 + step.aside.in_fp32
    if in_fp32 and plan.precision == "bf16":
        lines.append(f"  of all these in fp32 {tera(in_fp32)}")
    return lines


def estimate(plan: Plan) -> str:
    """Time of a step and MFU."""
    text = (
        f"{between(*map(seconds, plan.seconds))} a step (computation {seconds(plan.compute_seconds)}, "
        f"traffic {seconds(plan.network_seconds)})"
    )
    return text if plan.mfu is None else f"{text}, MFU {between(*(f'{share:.0%}' for share in plan.mfu))}"


def _time(plan: Plan) -> list[str]:
    peak = plan.cluster.gpu.peak
    network = (
        f", {ACHIEVED_BANDWIDTH:.0%} of the links, which is {plan.cluster.collective_bandwidth / GIGA:,.0f} GB/s into a rank"
        if plan.cluster.ranks > 1
        else ""
    )
    peaks = f"{peak.bf16 / TERA:,.0f} TFLOP/s in bf16 and {peak.fp32 / TERA:,.4g} in fp32"
    lines = [f"estimate: {estimate(plan)}", f"  assumed: {ACHIEVED_FLOPS:.0%} of {peaks}{network}"]
    return lines + [f"  left out: {text}" for text in (*plan.shape.unplanned, *plan.notes)]
