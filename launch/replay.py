"""Run the rows of a step whose update was skipped, or that stopped the run, again: one row at a time, in one process.

    python launch/replay.py runs/tiny_sft
    python launch/replay.py runs/tiny_sft --step 12
    python launch/replay.py runs/tiny_sft/divergence/step-00000012 --broken
    python launch/replay.py runs/tiny_sft --checkpoint runs/tiny_sft/checkpoints/step-00000010

Prints, for each row, its term, its sample, its loss, the norm of its gradient, and the first module whose output is not finite.
The weights are those of the newest checkpoint before that step, or those the run began with. No GPU is needed, for any number
of training ranks.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.pop(0)  # launch/, where profile.py would hide Python's module of that name
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megaunigame.checkpoint.runs import model_folder_of
from megaunigame.config import load_recipe
from megaunigame.diagnosis.replay import checkpoint_before, load, open_weights, replay
from megaunigame.diagnosis.text import row_line, summary, title
from megaunigame.errors import ConfigError
from megaunigame.launching import options_of, run_to_exit
from megaunigame.models.base import UnifiedModel
from megaunigame.registry import find
from megaunigame.training import kept_rows


def main(arguments: list[str]) -> None:
    parser = options_of(__doc__)
    parser.add_argument("folder", type=Path, help="folder of a run, or its divergence/step-... folder")
    parser.add_argument("--step", type=int, help="of a run's folder; default: its latest step with kept rows")
    parser.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="step folder of the weights; default: see above")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="where the run's model.path is now, if it was moved")
    parser.add_argument("--broken", action="store_true", help="only rows whose loss was not finite in the run")
    options = parser.parse_args(arguments)
    os.environ["DS_ACCELERATOR"] = "cpu"
    run, step_folder = _folders(options.folder, options.step)
    recipe = load_recipe(str(run / "recipe.yaml"), [])
    kept = list(kept_rows.read(step_folder))
    checkpoint = options.checkpoint or checkpoint_before(run, kept[0].step)
    family = find("models", recipe.model.family, UnifiedModel)
    path = model_folder_of(run, recipe, options.model)
    model = load(family, recipe, path, open_weights(family, recipe, checkpoint, path))
    print(title(kept[0], checkpoint), flush=True)
    results = []
    for step in kept:
        for result in replay(model, step, only_broken=options.broken):
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


if __name__ == "__main__":
    run_to_exit(main, sys.argv[1:])
