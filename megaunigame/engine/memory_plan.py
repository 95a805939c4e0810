"""The start-up plan of a run: parameters by group, rows, tokens, bytes per rank."""

from __future__ import annotations

from dataclasses import dataclass

from megaunigame.config import Recipe
from megaunigame.engine.element_bytes import GRADIENT, optimizer_bytes
from megaunigame.engine.parameters import element_count, group_label, rank_count
from megaunigame.engine.row_lengths import beyond_training
from megaunigame.models.base import UnifiedModel
from megaunigame.step.inputs import PassInputs
from megaunigame.step.requests import RowRequest, StepPlan


@dataclass(frozen=True)
class GroupSize:
    name: str
    elements: int
    trained: int


def group_sizes(model: UnifiedModel) -> list[GroupSize]:
    """Whole-model element counts per group (adapters are a separate group)."""
    totals: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        entry = totals.setdefault(group_label(model, name), [0, 0])
        entry[0] += element_count(parameter)
        entry[1] += element_count(parameter) * parameter.requires_grad
    return [GroupSize(name, *entry) for name, entry in totals.items()]


def bytes_per_rank(model: UnifiedModel, world_size: int, averaged: bool = False) -> dict[str, int]:
    """Model states on one rank, without activations: the dry run shows whether those fit.

    bf16: 2 bytes per weight, 4 per accumulated gradient, 12 for the fp32 master and AdamW's two moments. fp32: 4, 4 and 12
    (the engine keeps an fp32 master slice in addition to the weights). `averaged`: 4 more for the average of the master.
    """
    weights = sum(rank_count(p) * p.element_size() for p in model.parameters())
    trained = sum(element_count(p) for p in model.parameters() if p.requires_grad)
    slice_of_trained = -(-trained // world_size)
    optimizer = optimizer_bytes(averaged=averaged) * slice_of_trained
    return {"weights": weights, "gradients": GRADIENT * slice_of_trained, "optimizer": optimizer}


def describe(
    model: UnifiedModel,
    recipe: Recipe,
    plan: StepPlan,
    largest: dict[str, PassInputs],
    accumulation: int,
    world_size: int,
    epochs: str = "",
    shared_by: int = 1,
) -> str:
    """The start-up plan as text. `epochs`: what the steps of the schedule were counted from, in words; `shared_by`: ranks that
    share their rows."""
    data_ranks = world_size // shared_by
    sizes = group_sizes(model)
    total, trained = sum(s.elements for s in sizes), sum(s.trained for s in sizes)
    width = max(len(s.name) for s in sizes) + 2
    lines = [f"model: {total:,} parameters, {trained:,} trained ({trained / total:.2%})"]
    lines += [f"  {s.name:<{width}}{s.elements:>16,}  {'trained' if s.trained else 'frozen'}" for s in sizes]
    dealt = ", dealt over micro-steps and ranks by their length" if recipe.loader.balance else ""
    lines.append(f"rows: {plan.rows_per_micro_step() * accumulation * data_ranks} per optimizer step{dealt}")
    of_rank = "rank" if shared_by == 1 else f"{shared_by} ranks that share them"
    for name in plan.passes:
        rows = ", ".join(f"{r.term} {r.count} ({_at_most(r)}weight {r.weight:g})" for r in plan.of_pass(name))
        longest = largest[name].tokens.shape[1]
        lines.append(f"  {name} pass, per micro-step and {of_rank}: {rows}; up to {longest} positions a row")
        if (taps := largest[name].taps) is not None:
            queries = f"from {taps.queries} random queries a row" if taps.queries else "from all queries"
            lines.append(f"    its attention is measured in {len(taps.layers)} layers, {queries}")
    if packed := [name for name in plan.passes if name in model.packed_passes]:
        lines.append(
            f"  rows of {' and '.join(packed)} passes are packed, counted on: {recipe.model.pack_tokens:,} tokens a pass"
        )
    if warning := beyond_training(type(model), recipe.model):
        lines.append(f"  warning: {warning}")
    if plan.aside:
        rows = ", ".join(f"{r.term} {r.count}" + (f" (samples of {r.shares})" if r.shares else "") for r in plan.aside)
        lines.append(f"  aside, per micro-step and {of_rank}, the learner frozen: {rows}")
    tokens = sum(largest[name].tokens.numel() for name in plan.passes) * accumulation * data_ranks
    passes = f"{accumulation} micro-steps x {len(plan.passes)} passes each"
    length = f"{epochs} = {recipe.schedule.steps:,} steps" if epochs else f"steps: {recipe.schedule.steps}"
    lines.append(f"{length}, {passes}, up to {tokens:,} positions a step")
    states = bytes_per_rank(model, world_size, bool(recipe.ema.decay))
    parts = ", ".join(f"{name} {short_bytes(size)}" for name, size in states.items())
    lines.append(f"bytes per rank ({world_size} ranks, {recipe.engine.precision}): {parts}; activations come on top")
    return "\n".join(lines)


def _at_most(request: RowRequest) -> str:
    return "" if request.places == request.count else f"at most {request.places}, "


def short_bytes(value: float) -> str:
    """12.3 MiB."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if value >= 1024**power:
            return f"{value / 1024**power:.1f} {unit}"
    return f"{value:.0f} B"
