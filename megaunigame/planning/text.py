"""A plan as a text."""

from __future__ import annotations

from megaunigame.planning.machines import ACHIEVED_BANDWIDTH, ACHIEVED_FLOPS
from megaunigame.planning.plan import Plan

TERA = 1e12


def describe(plan: Plan, advice: str) -> str:
    """Parameters, rows, bytes of a GPU, traffic, operations, time, and whether it fits."""
    return "\n".join([*_model(plan), *_memory(plan), *_step(plan), *_verdict(plan, advice)])


def _model(plan: Plan) -> list[str]:
    groups = plan.shape.groups
    total, trained = sum(g.elements for g in groups), sum(g.trained for g in groups)
    cluster = plan.cluster
    lines = [
        f"{plan.name}: {cluster.nodes} x {cluster.gpus_per_node} {cluster.gpu.name}, ZeRO-{plan.stage}",
        f"parameters: {total:,}, of which {trained:,} trained",
    ]
    lines += [f"  {g.name:<20}{g.elements:>18,}{g.trained:>18,} trained" for g in groups]
    for name, terms in plan.rows.items():
        lines.append(f"{name} pass: {', '.join(f'{term} {count}' for term, count in terms.items())} rows a micro-step and rank")
    lines.append(f"micro-steps of an optimizer step: {plan.accumulation}")
    return lines


def _memory(plan: Plan) -> list[str]:
    lines = ["bytes of one GPU, largest legal rows:"]
    lines += [f"  {name:<50}{_gb(size)}" for name, size in plan.memory.items()]
    lines.append(f"  {'total':<50}{_gb(plan.total)} of {_gb(plan.cluster.gpu.memory).strip()}")
    lines.append("of the activations:")
    for name in plan.passes:
        kept = (f"{_gb(r.kept[name]).strip()} {how}" for r, how in ((plan.checkpointed, "with"), (plan.plain, "without")))
        lines.append(f"  graph of the {name} pass: {', '.join(kept)} gradient checkpointing")
    lines.append(f"  a micro-step at its peak, all passes alive: {_gb(plan.step.peak).strip()}")
    if plan.step.attack_peak:
        lines.append(f"  an attack at its peak: {_gb(plan.step.attack_peak).strip()}")
    lines.append(f"  gathered weights, most at once: {_gb(plan.step.gathered_at_once).strip()}")
    lines += [f"host memory of a rank: {name} {_gb(size).strip()}" for name, size in plan.host.items()]
    return lines


def _step(plan: Plan) -> list[str]:
    lines = [f"weights gathered in a step: {_gb(plan.gathered).strip()}; gradients reduced: {_gb(plan.reduced).strip()}"]
    flops = ", ".join(f"{name} forward {flops / TERA:.4g}" for name, flops in plan.plain.forward_flops.items())
    lines.append(f"TFLOP of a micro-step and rank: {flops}, backward {plan.plain.backward_flops / TERA:.4g}")
    again = plan.step.backward_flops - plan.plain.backward_flops
    attack = f", attack {plan.step.attack_flops / TERA:.4g}" if plan.step.attack_flops else ""
    lines.append(f"  on top: computed again for gradient checkpointing {again / TERA:.4g}{attack}")
    (shortest, longest), (least, most) = plan.seconds, plan.mfu
    lines.append(
        f"estimate: {shortest:.3g} to {longest:.3g} s a step (computation {plan.compute_seconds:.3g}, "
        f"traffic {plan.network_seconds:.3g}), MFU {least:.0%} to {most:.0%}"
    )
    lines.append(
        f"  assumed: {ACHIEVED_FLOPS:.0%} of {plan.cluster.gpu.flops / TERA:,.0f} TFLOP/s, {ACHIEVED_BANDWIDTH:.0%} of the "
        f"links, which is {plan.cluster.collective_bandwidth / 1e9:,.0f} GB/s into a rank"
    )
    return lines


def _verdict(plan: Plan, advice: str) -> list[str]:
    return ["fits" if plan.fits else f"does not fit; {advice}"]


def _gb(size: float) -> str:
    """Gigabytes of 10^9 bytes, or megabytes below a tenth of one."""
    return f"{size / 1e9:>9.2f} GB" if size >= 1e8 else f"{size / 1e6:>9.2f} MB"
