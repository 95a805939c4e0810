"""The first things the ranks of a run do together: see that they are the same, begin to watch over each other, clear up."""

from __future__ import annotations

from pathlib import Path

from megaunigame.checkpoint.manager import CheckpointManager
from megaunigame.config import Recipe, by_key
from megaunigame.parallel.ranks import Ranks
from megaunigame.parallel.same_start import check_same_start, facts_of_process
from megaunigame.parallel.watch import Watch


def watch(world: Ranks, recipe: Recipe) -> Watch:
    """Collective, before anything is loaded; the run goes into the `with` block.

    Raises ConfigError on all ranks when they have other code, packages or settings.
    """
    check_same_start(world, facts_of_process(by_key(recipe)))
    engine = recipe.engine
    return Watch(world, recipe.output, timeout_minutes=engine.timeout_minutes, lost_seconds=engine.lost_seconds)


def clear_leftovers(recipe: Recipe, world: Ranks) -> None:
    """Collective: delete what a killed save has left, or give it back its name. Only for a launch that holds the run folder.

    Before anything looks for a checkpoint: a kill may have left the only one without its name.
    """
    CheckpointManager(Path(recipe.output), recipe.checkpoint.keep, world).clear_leftovers()
