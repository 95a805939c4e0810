"""The kept rows of a step, run again and printed."""

from __future__ import annotations

from pathlib import Path

from megaunigame.checkpoint.runs import model_folder_of
from megaunigame.config import load_recipe
from megaunigame.diagnosis.replay import checkpoint_before, load, open_weights, replay
from megaunigame.diagnosis.text import row_line, summary, title
from megaunigame.errors import ConfigError
from megaunigame.models.base import UnifiedModel
from megaunigame.registry import find
from megaunigame.training import kept_rows


def rerun(folder: Path, step: int | None, *, checkpoint: Path | None, model: Path | None, only_broken: bool) -> None:
    """`folder`: of a run or of one step of it; `checkpoint`: step folder of the weights; `model`: where model.path is now.

    Raises ConfigError when there is no such run or step.
    """
    run, step_folder = _folders(folder, step)
    recipe = load_recipe(str(run / "recipe.yaml"), [])
    kept = list(kept_rows.read(step_folder))
    checkpoint = checkpoint or checkpoint_before(run, kept[0].step)
    family = find("models", recipe.model.family, UnifiedModel)
    path = model_folder_of(run, recipe, model)
    learner = load(family, recipe, path, open_weights(family, recipe, checkpoint, path))
    print(title(kept[0], checkpoint), flush=True)
    results = []
    for rows in kept:
        for result in replay(learner, rows, only_broken=only_broken):
            print(row_line(result), flush=True)
            results.append(result)
    print(summary(results))


def _folders(folder: Path, step: int | None) -> tuple[Path, Path]:
    """The run and its step folder. Raises ConfigError when there is no run around the folder."""
    inside = folder.resolve()
    if inside.parent.name == kept_rows.FOLDER:
        if step is not None:
            raise ConfigError(f"{folder} is the folder of one step: leave out --step, or give {inside.parents[1]}.")
        run, step_folder = inside.parents[1], inside
    else:
        run = folder
        step_folder = kept_rows.newest(run) if step is None else kept_rows.step_folder(run, step)
    if not (run / "recipe.yaml").is_file():
        raise ConfigError(f"{run} is not the folder of a run (no recipe.yaml). Give RUN, or RUN/{kept_rows.FOLDER}/step-....")
    return run, step_folder
