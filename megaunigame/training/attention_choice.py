"""The attention of a run: what `model.attention: auto` takes, and a refusal of one that cannot run, before weights are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from megaunigame.config import AUTO, BF16, Recipe
from megaunigame.errors import ConfigError
from megaunigame.evaluation.suites.base import Suite
from megaunigame.models.base import UnifiedModel
from megaunigame.models.base.attention import FLASH, AttentionChoice, AttentionSetting, Machine, choose, why_not
from megaunigame.parallel.ranks import Ranks


def settled_attention(
    recipe: Recipe, suites: Mapping[str, Suite], family: type[UnifiedModel], path: str, world: Ranks
) -> AttentionChoice:
    """Collective: the attention of the model in `path`, the same on all ranks; the reason is empty unless `auto` chose it.

    Raises ConfigError for one that the recipe names and that cannot run here.
    """
    model = recipe.model
    if model.attention != AUTO and model.attention not in FLASH:
        return AttentionChoice(model.attention, "")  # runs everywhere
    needs = family.attention_needs(path)
    rows = next(iter(_rows_with_masks(recipe.objectives, suites)), "")
    machine = Machine.least(world.all_gather_object(Machine.here(world.device)))
    setting = AttentionSetting(
        machine,
        needs._replace(mask=needs.mask or rows),
        half=recipe.engine.precision == BF16,
        packed=model.pack_tokens > 0,
    )
    if model.attention == AUTO:
        return choose(setting)
    if reason := why_not(model.attention, setting):
        raise ConfigError(
            f"model.attention={model.attention} cannot run here: {reason}. Type model.attention=sdpa, or model.attention=auto, "
            "which takes what can."
        )
    return AttentionChoice(model.attention, "")


def _rows_with_masks(objectives: Mapping[str, dict[str, Any]], suites: Mapping[str, Suite]) -> Iterable[str]:
    """The settings that ask for rows whose parts do not see each other."""
    for name, given in objectives.items():
        if given and given.get("independent"):
            yield f"objectives.{name}.independent=true needs one"
    for label, suite in suites.items():
        if setting := suite.needs_mask():
            yield f"evaluation.suites.{label}.{setting} needs one"
