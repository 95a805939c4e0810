"""An evaluation without training."""

from __future__ import annotations

from pathlib import Path

from megaunigame.config import Recipe
from megaunigame.evaluation.run import as_text, evaluation_file
from megaunigame.monitoring.console import say
from megaunigame.monitoring.history import METRICS_FILE
from megaunigame.parallel.mesh import Mesh
from megaunigame.parallel.pulse import EVALUATION, PULSE
from megaunigame.parallel.ranks import start_world
from megaunigame.training.assembly import Assembly
from megaunigame.training.start import watch

ALONE = "evaluated_alone"
"""Folder in that of a run."""


def evaluate(recipe: Recipe) -> None:
    """Run the suites of a recipe on its checkpoint or model, on every rank; rank 0 prints the tables."""
    world = start_world(recipe.engine.timeout_minutes, deterministic=recipe.engine.deterministic)
    with watch(world, recipe):
        mesh = Mesh.of(world, recipe.engine.sequence_ranks, recipe.engine.timeout_minutes)
        assembly = Assembly(recipe, mesh, trains=False)
        if world.is_main:
            say(evaluated(assembly.resumed_from, assembly.state.step, assembly.folder))
        assembly.folder = results_folder(assembly.folder)
        learner = assembly.build_learner()
        if assembly.resumed_from is not None:
            assembly.checkpoints.load(learner, assembly.resumed_from)
        assembly.check_drawing(learner, say if world.is_main else lambda line: None)
        with PULSE.phase(EVALUATION):
            evaluation = assembly.evaluate(learner, say if world.is_main else lambda line: None)
        if world.is_main:
            say(as_text(evaluation))
            say(f"results: {evaluation_file(assembly.folder, assembly.state.step)}")
    world.close()


def evaluated(checkpoint: Path | None, step: int, output: Path) -> str:
    """Which weights are evaluated, for people. With another `output`, the checkpoint of a run is not found by itself."""
    if checkpoint is not None:
        return f"evaluating step {step}, of {checkpoint}"
    return (
        f"evaluating the weights that the recipe begins with, no checkpoint of {output} (checkpoint.resume=PATH names another)"
    )


def results_folder(output: Path) -> Path:
    """Where the results go: into `output`; or, when that is the folder of a run, into a folder in it, as the evaluations of a
    run decide about its best checkpoint, its end and its report, and may have other settings."""
    return output / ALONE if (output / METRICS_FILE).exists() else output
