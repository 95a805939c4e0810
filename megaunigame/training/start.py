"""The first thing the ranks of a run do together: see that they are the same, and begin to watch over each other."""

from __future__ import annotations

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
