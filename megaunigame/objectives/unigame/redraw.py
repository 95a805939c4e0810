"""Sources redrawn by another objective's rows: the attack takes the hidden states of the learner's own generate pass.

Prompts, softened sources and dropped conditions are those of the term. All rows are teacher forced with the picture itself,
so an anchored attack starts from the same codes in every case.
"""

from __future__ import annotations

from megaunigame.errors import ConfigError
from megaunigame.objectives.unigame.paths import Redraw
from megaunigame.objectives.unigame.settings import Settings
from megaunigame.registry import unknown
from megaunigame.step.inputs import GenerateOutput
from megaunigame.step.requests import CROP, FIT, GENERATE, StepPlan


def check_redraw(settings: Settings, plan: StepPlan) -> None:
    """Raises ConfigError unless the term named by `redraw` redraws the attacked pictures in every micro-step."""
    where, term = "objectives.unigame", settings.redraw
    able = [r.term for r in plan.of_pass(GENERATE) if r.target_is_source]
    if not able:
        raise ConfigError(
            f"{where}.redraw={term}: no objective redraws the sources. Give objectives.unimrg.rows.pixel or "
            f"objectives.generation.pixel_rows, or type {where}.redraw=own."
        )
    if term not in able:
        raise ConfigError(unknown(f"value of {where}.redraw", term, ["own", *able]))
    [request] = [r for r in plan.requests if r.term == term]
    if request.takes_source != (settings.condition == "image"):
        drawn_from = "image" if request.takes_source else "caption"
        raise ConfigError(
            f"{where}.redraw={term}: these rows draw from the {drawn_from}. Type {where}.condition={drawn_from}, "
            f"or {where}.redraw=own."
        )
    if request.geometry == CROP:
        raise ConfigError(
            f"{where}.redraw={term}: these rows cut the edges of a picture off, and the question may be about them. Give "
            f"them the geometry {FIT} (objectives.generation.{term}_geometry or objectives.unimrg.geometry), or type "
            f"{where}.redraw=own."
        )
    for name, ours, theirs in (
        ("stream", settings.stream, request.stream),
        ("attack_rows", settings.attack_rows, request.count),
    ):
        if ours != theirs:
            raise ConfigError(
                f"{where}.{name}={ours}, but {where}.redraw={term}, whose rows have {theirs}. Type {where}.{name}={theirs}, "
                f"or {where}.redraw=own."
            )
    if any(term in rotation.terms for rotation in plan.rotations):
        raise ConfigError(
            f"{where}.redraw={term}: the term is in rotation with others, and every attack needs it. Type "
            f"objectives.unimrg.schedule=all, or {where}.redraw=own."
        )


def redrawn_in(output: GenerateOutput, at: slice) -> Redraw:
    """The rows `at` of a generate pass, cut off from its graph."""
    return Redraw(output.hidden[at].detach(), output.target[at])
