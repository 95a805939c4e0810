"""Evaluate a model or a checkpoint with the suites of a recipe, under the engine that trained it.

    deepspeed --num_gpus 2 launch/evaluate.py runs/tiny_sft/recipe.yaml                     newest checkpoint of the run
    deepspeed --num_gpus 2 launch/evaluate.py launch/recipes/tiny_sft.yaml \\
        checkpoint.resume=never model.path=exported/tiny_sft output=runs/exported_eval      a model folder

Any number of ranks, for a checkpoint as for an exported folder (launch/export.py). Prints the tables, and writes
<output>/evaluation/step-XXXXXXXX.json and its pictures. A signal ends it at once, without results.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.pop(0)  # launch/, where profile.py would hide Python's module of that name
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megaunigame.config import load_recipe
from megaunigame.errors import ConfigError
from megaunigame.evaluation.run import as_text
from megaunigame.launching import options_of_a_recipe, run_to_exit
from megaunigame.parallel.mesh import Mesh
from megaunigame.parallel.pulse import EVALUATION, PULSE
from megaunigame.parallel.ranks import start_world
from megaunigame.training.assembly import Assembly
from megaunigame.training.start import watch


def main(arguments: list[str]) -> None:
    options = options_of_a_recipe(__doc__).parse_args(arguments)

    recipe = load_recipe(options.recipe, options.overrides)
    if not recipe.evaluation.suites:
        raise ConfigError(f"{options.recipe} names no evaluation suite. Add one under evaluation.suites.")
    world = start_world(recipe.engine.timeout_minutes, deterministic=recipe.engine.deterministic)
    with watch(world, recipe):
        run = Assembly(recipe, Mesh.of(world), trains=False)
        learner = run.build_learner()
        if run.resumed_from is not None:
            run.checkpoints.load(learner, run.resumed_from)
        with PULSE.phase(EVALUATION):
            evaluation = run.evaluate(learner)
        if world.is_main:
            print(as_text(evaluation))
    world.close()


if __name__ == "__main__":
    run_to_exit(main, sys.argv[1:])
