"""A run from its recipe to its report, on every rank."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from megaunigame.config import Recipe, as_yaml
from megaunigame.errors import Interrupted
from megaunigame.monitoring.console import say
from megaunigame.monitoring.monitor import rank_log
from megaunigame.monitoring.run_record import RunRecord
from megaunigame.parallel.interruption import ENDS, Interruption
from megaunigame.parallel.last_words import make_recorder_folder, use_flight_recorder
from megaunigame.parallel.mesh import Mesh
from megaunigame.parallel.ranks import start_world
from megaunigame.training.ending import leave, report
from megaunigame.training.run_lock import claim, release
from megaunigame.training.start import clear_leftovers, watch
from megaunigame.training.trainer import Trainer


def train(recipe: Recipe, stop: Interruption, *, sources: dict[str, str], command: Sequence[str]) -> None:
    """Train, or go on with the run in `recipe.output`, until the last step or until a signal ends it.

    `sources`: folder of shards -> the data set it was packed from; `command`: what was typed, for the record. Raises
    Interrupted on all ranks when a signal has ended the run, which is saved.
    """
    use_flight_recorder(recipe.output)
    world = start_world(recipe.engine.timeout_minutes, deterministic=recipe.engine.deterministic)
    with watch(world, recipe):
        claim(recipe.output, world)
        try:
            rank_log(recipe.output, world.rank)
            make_recorder_folder(recipe.output)
            clear_leftovers(recipe, world)
            mesh = Mesh.of(world, recipe.engine.sequence_ranks, recipe.engine.timeout_minutes)
            trainer = Trainer(recipe, mesh, stop=stop)
            trainer.saves.make_room()
            plan = trainer.describe()
            record = None
            if world.is_main:
                say(plan)
                record = RunRecord(
                    trainer.folder,
                    name=recipe.name,
                    command=shlex.join(command),
                    world_size=world.size,
                    recipe=as_yaml(trainer.recipe),
                    plan=plan,
                    origin=trainer.parts.origin(),
                    sources=sources,
                )
            trainer.fit()
            report(world, record, complete=not trainer.interrupted)
        finally:
            release()
    stop.phase = ENDS
    leave(world)
    if trainer.interrupted:
        raise Interrupted(trainer.interrupted)
