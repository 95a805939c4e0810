"""Train a unified multimodal model from a recipe.

    deepspeed --num_gpus 8 launch/train.py launch/recipes/tiny_sft.yaml
    deepspeed --hostfile hosts launch/train.py launch/recipes/tiny_sft.yaml output=runs/a schedule.steps=2000
    DS_ACCELERATOR=cpu python launch/train.py launch/recipes/tiny_sft.yaml     one process on the CPU, no launcher

The same command again resumes the run from its newest checkpoint. Without DS_ACCELERATOR=cpu a run needs GPUs.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

sys.path.pop(0)  # launch/, where profile.py would hide Python's module of that name
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megaunigame.parallel.interruption import ENDS, Interruption

STOP = Interruption()
if __name__ == "__main__":
    STOP.listen()  # before the imports that take seconds

from data_prep.first_use import pack_sources
from megaunigame.config import as_yaml, load_recipe
from megaunigame.errors import Interrupted
from megaunigame.launching import options_of_a_recipe, run_to_exit
from megaunigame.monitoring.monitor import rank_log
from megaunigame.monitoring.run_record import RunRecord
from megaunigame.parallel.last_words import make_recorder_folder, use_flight_recorder
from megaunigame.parallel.mesh import Mesh
from megaunigame.parallel.ranks import start_world
from megaunigame.training.ending import leave, report
from megaunigame.training.run_lock import claim, release
from megaunigame.training.start import clear_leftovers, watch
from megaunigame.training.trainer import Trainer


def main(arguments: list[str]) -> None:
    options = options_of_a_recipe(__doc__).parse_args(arguments)

    recipe = load_recipe(options.recipe, options.overrides)
    sources = pack_sources(recipe.data)
    use_flight_recorder(recipe.output)
    world = start_world(recipe.engine.timeout_minutes, deterministic=recipe.engine.deterministic)
    with watch(world, recipe):
        claim(recipe.output, world)
        try:
            rank_log(recipe.output, world.rank)
            make_recorder_folder(recipe.output)
            clear_leftovers(recipe, world)
            trainer = Trainer(recipe, Mesh.of(world), stop=STOP)
            trainer.make_room()
            plan = trainer.describe()
            record = None
            if world.is_main:
                if trainer.resumed_from is not None:
                    print(trainer.parts.how_resumed(), flush=True)
                print(plan, flush=True)
                record = RunRecord(
                    trainer.folder,
                    name=recipe.name,
                    command=shlex.join(["launch/train.py", options.recipe, *options.overrides]),
                    world_size=world.size,
                    recipe=as_yaml(recipe),
                    plan=plan,
                    origin=trainer.parts.origin(),
                    sources=sources,
                )
            trainer.fit()
            report(world, record, complete=not trainer.interrupted)
        finally:
            release()
    STOP.phase = ENDS
    leave(world)
    if trainer.interrupted:
        raise Interrupted(trainer.interrupted)


if __name__ == "__main__":
    run_to_exit(main, sys.argv[1:])
