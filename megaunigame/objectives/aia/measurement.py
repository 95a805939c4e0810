"""What AIA measures: which passes, in which layers, and the target of each."""

from __future__ import annotations

from dataclasses import dataclass

from megaunigame.attention.targets import PASSES, Target, find_targets
from megaunigame.errors import ConfigError
from megaunigame.objectives.aia.settings import Settings
from megaunigame.step.inputs import Taps
from megaunigame.step.requests import GENERATE, StepPlan


@dataclass(frozen=True)
class Measurement:
    """For a model of known depth and the rows of a plan."""

    layer_targets: dict[str, list[Target]]
    """Pass -> target of each tapped layer."""
    row_terms: tuple[int, ...]
    """Indices of the loss terms whose rows are measured."""
    taps: Taps

    @property
    def passes(self) -> tuple[str, ...]:
        return tuple(self.layer_targets)


def _default_terms(plan: StepPlan) -> tuple[str, ...]:
    """All terms but those of generate rows with a source picture: it is not among the keys, so the loss would pull their
    attention away from it (the method knows text-to-image rows only). And but those that a player fills: a gradient through
    their pictures would be one into the player."""
    of_data = (r for r in plan.requests if not r.aside and r.stream is not None)
    return tuple(r.term for r in of_data if r.pass_name != GENERATE or not r.takes_source)


def measurement_of(config: Settings, plan: StepPlan, family: str, depth: int) -> Measurement:
    """Raises ConfigError for a layer that the model does not have, and when no pass of the plan has targets."""
    wanted = config.terms or _default_terms(plan)
    for layer in config.layers:
        if not 0 <= layer < depth:
            raise ConfigError(f"objectives.aia.layers: {layer} is not a layer; this model has 0 to {depth - 1}.")
    layers = tuple(sorted(config.layers)) or tuple(range(depth))
    targets = find_targets(config.targets, family, depth, config.compat)
    passes = [p for p in plan.passes if p in targets and any(r.term in wanted for r in plan.of_pass(p))]
    if not passes:
        raise ConfigError(
            f"objectives.aia.targets={config.targets} has targets for {', '.join(targets)}, and no such pass has rows for it. "
            f"Add rows of another objective, give targets for {' or '.join(PASSES)}, or name rows with a source picture in "
            "objectives.aia.terms, which are left out by default."
        )
    layer_targets = {p: [targets[p][layer] for layer in layers] for p in passes}
    row_terms = tuple(plan.terms.index(term) for term in wanted)
    return Measurement(layer_targets, row_terms, Taps(layers, config.queries, config.exclude_bos, config.compat))
