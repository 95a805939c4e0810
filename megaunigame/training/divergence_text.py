"""What is said about an update that was refused: which term, which samples or which weight, and what to type."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megaunigame.config import Recipe
from megaunigame.engine.broken_weights import BrokenWeight
from megaunigame.training.divergence import Divergence, Refusal
from megaunigame.training.kept_rows import MOST_STEPS
from megaunigame.training.spikes import Spike

SHOWN = 8
"""Samples named per rank, and weights."""
MOST_LR = 0.1
"""Half of a larger one would not be useful advice."""
MOST_SIGMAS = 1_000_000
"""Above a median of 0, any number is as good."""


@dataclass(frozen=True)
class Facts:
    """What all ranks know about a refused update, besides the verdict."""

    step: int
    """1 is the first of the run."""
    samples: Sequence[Sequence[str]]
    """Per rank: "KEY (TERM)" of rows whose loss is not finite."""
    weights: Sequence[BrokenWeight]
    kept: str
    """Where the rows are; empty: there was no room."""
    not_kept: Sequence[str]
    """Why the rows of a rank are not there, or not all."""
    newest: str
    """The step folder that the same command goes on from; empty: there is none."""


def cause(refusal: Refusal, facts: Facts, objective_of: Mapping[str, str]) -> str:
    """Which number, of which objective, in which step."""
    if refusal.terms:
        several = len(refusal.terms) > 1
        losses = f"The loss{'es' if several else ''} of {_listed(refusal.terms, objective_of)}"
        return f"{losses} {'are' if several else 'is'} not finite in step {facts.step}"
    if not math.isfinite(refusal.norm):
        players = _listed(refusal.of_players, objective_of)
        verbs = ("those", "are") if len(refusal.of_players) > 1 else ("that", "is")
        of_players = f" ({verbs[0]} of {players} {verbs[1]} not)" if players else ""
        return f"The gradient of step {facts.step} is not finite although the losses of its rows are{of_players}"
    return f"Step {facts.step} has a spike: {spikes_text(refusal.spikes, objective_of)}"


def spikes_text(spikes: Sequence[Spike], objective_of: Mapping[str, str]) -> str:
    """Each with its median; of a loss, with its objective."""
    return "; ".join(
        f"{spike.name}{_objective(spike.name.partition('/')[2], objective_of)} is {spike.value:.4g}, {_sigmas(spike)} robust "
        f"standard deviations above its median {spike.median:.4g}"
        for spike in spikes
    )


def skipped(refusal: Refusal, facts: Facts, divergence: Divergence, objective_of: Mapping[str, str]) -> str:
    """The warning of a step whose update was skipped, and after which the run goes on."""
    config = divergence.config
    return (
        f"{cause(refusal, facts, objective_of)}; its update was skipped on all ranks, number {len(divergence.recent)} of "
        f"the {config.skip} that may be skipped within {config.window} steps (divergence.skip).{_samples(facts)}{_rows(facts)}"
    )


def stopped(refusal: Refusal, facts: Facts, divergence: Divergence, objective_of: Mapping[str, str], recipe: Recipe) -> str:
    """The error of a run that stops because its budget is spent."""
    config, lr = divergence.config, recipe.optimizer.lr
    times = len(divergence.recent)
    spent = (
        f"{times} of the last {config.window} updates were not made, and divergence.skip={config.skip} allows {config.skip}."
        if config.skip
        else "divergence.skip=0 allows no update to be skipped."
    )
    smaller = f"optimizer.lr={typed(lr / 2)} (it is {typed(lr)})"
    if lr > MOST_LR:
        smaller = f"a far smaller optimizer.lr (it is {typed(lr)}, and {typed(MOST_LR)} is much)"
    cure = f"type {smaller} or a smaller optimizer.clip after it"
    if not refusal.is_broken:
        cure += ", or divergence.on_spike=warn if such steps are harmless"
    return (
        f"{cause(refusal, facts, objective_of)}; nothing was updated with it. {spent}{_samples(facts)}{_rows(facts)} "
        f"Give the same command again and {cure}: {_from_where(facts)}."
    )


def without_gradient(refusal: Refusal, facts: Facts, divergence: Divergence, recipe: Recipe) -> str:
    """The error of a run that learns nothing any more."""
    zeros, key = refusal.zeros, "divergence.zero_gradients"
    steps = "step" if zeros == 1 else f"{zeros} steps"
    losses = ", ".join(f"{term} {loss:.4g}" for term, loss in refusal.losses.items())
    said = f"Losses of this step: {losses}." if losses else "No row of this step had a loss."
    return (
        f"The gradient norm was exactly 0 in the last {steps}, up to step {facts.step} "
        f"({key}={divergence.config.zero_gradients}): the model does not learn. {said} Look in "
        f"{recipe.output}/metrics.jsonl: rows/TERM/dummies (no sample has what the term needs), rows/TERM/cut (the text "
        f"with the loss was cut off), weight/TERM (a factor of 0), and loss/TERM (constant since some step: an update made the "
        f"model constant, and optimizer.lr={typed(recipe.optimizer.lr)} is too high).{_rows(facts)} To go on from before step "
        f"{facts.step - zeros + 1}, type checkpoint.resume=PATH with an older step folder; if such steps are meant, "
        f"type {key}=0."
    )


def broken(facts: Facts, recipe: Recipe, resumed_from: str) -> str:
    """The error of a run whose weights are the cause: neither samples nor learning rate are blamed."""
    shown = ", ".join(
        f"{w.name} ({'trained' if w.trained else 'frozen'}, {w.elements:,} of {w.of:,} elements)" for w in facts.weights[:SHOWN]
    )
    more = f" and {len(facts.weights) - SHOWN} more" if len(facts.weights) > SHOWN else ""
    several = len(facts.weights) > 1
    begin = f"{'Weights are' if several else 'A weight is'} not finite in step {facts.step}: {shown}{more}."
    if any(not weight.trained for weight in facts.weights):
        source = recipe.model.weights_from or recipe.model.path
        return (
            f"{begin} No update changes a frozen weight, so the samples are not the cause: it was read like this, or memory "
            f"has changed it. Copy the model folder {source} again, then give the same command."
        )
    read = resumed_from or recipe.model.weights_from or recipe.model.path
    return (
        f"{begin} So the samples of this step are not the cause; no update with a gradient that is not finite is ever made. "
        f"{'They were' if several else 'It was'} read like this from {read}, or an update of this launch overflowed. "
        + (
            f"Type checkpoint.resume=PATH with a step folder older than {facts.newest}."
            if facts.newest
            else f"No checkpoint was saved yet: copy {read} again, or type an optimizer.lr below {typed(recipe.optimizer.lr)}."
        )
    )


def typed(number: float) -> str:
    """As a person types it: 0.0005, 5e-6."""
    plain = f"{number:.3g}"
    mantissa, _, exponent = plain.partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else plain


def _sigmas(spike: Spike) -> str:
    return f"{spike.sigmas:.0f}" if spike.sigmas < MOST_SIGMAS else f"more than {MOST_SIGMAS:,}"


def _samples(facts: Facts) -> str:
    named = [f"rank {rank}: {', '.join(keys[:SHOWN])}" for rank, keys in enumerate(facts.samples) if keys]
    return f" Samples: {'; '.join(named)}." if named else ""


def _rows(facts: Facts) -> str:
    if not facts.kept:
        return f" Its rows were not kept: those of {MOST_STEPS} steps are."
    problems = "".join(f" {problem}" for problem in facts.not_kept)
    return f" To run its rows again alone, type: megaunigame replay {shlex.quote(facts.kept)}.{problems}"


def _from_where(facts: Facts) -> str:
    if not facts.newest:
        return "no checkpoint was saved yet, so it begins at step 1"
    return f"it goes on from {facts.newest}"


def _listed(terms: Sequence[str], objective_of: Mapping[str, str]) -> str:
    *first, last = [f"{term}{_objective(term, objective_of)}" for term in terms] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def _objective(term: str, objective_of: Mapping[str, str]) -> str:
    return f" (objective {objective_of[term]})" if term in objective_of else ""
