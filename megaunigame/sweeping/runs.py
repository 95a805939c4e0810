"""The runs of a sweep and their state on disk."""

from __future__ import annotations

import fcntl
import json
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import yaml
from omegaconf import OmegaConf

from megaunigame.config import load_recipe
from megaunigame.errors import ConfigError
from megaunigame.monitoring.history import read_run_folder
from megaunigame.monitoring.names import EVALUATION
from megaunigame.storage.json_files import read_object
from megaunigame.storage.whole_files import write_whole
from megaunigame.sweeping.definition import Sweep

ORIGIN_FILE = "sweep_run.json"
LOG_FILE = "run.log"
State = Literal["new", "unfinished", "running", "done"]


@dataclass(frozen=True)
class Run:
    """One arm with one seed."""

    arm: str
    seed: int
    folder: Path
    steps: int
    """Optimizer steps of its schedule; 0: not known before it runs (`schedule.epochs`, `early_stop`)."""
    recipe: str
    overrides: tuple[str, ...]
    """`key=value` as on the command line, `seed` and `output` last."""
    origin: dict[str, Any]
    """Must not change between two starts: content of the recipe, overrides, ranks."""

    @property
    def name(self) -> str:
        return f"{self.arm}/seed-{self.seed}"

    @property
    def log(self) -> Path:
        """Standard output and error of all its starts. The process that runs it holds a lock on this file until it ends."""
        return self.folder / LOG_FILE


def plan_runs(sweep: Sweep) -> list[Run]:
    """All runs, seed by seed, so that a partial sweep already compares all arms.

    Raises ConfigError if the recipe with an arm's overrides is not legal, or a folder holds another run.
    """
    runs = [_run(sweep, arm, seed) for seed in sweep.seeds for arm in sweep.arms]
    for run in runs:
        _refuse_another_origin(run)
    return runs


def _run(sweep: Sweep, arm: str, seed: int) -> Run:
    folder = Path(sweep.output) / arm / f"seed-{seed}"
    settings = {**sweep.common, **sweep.arms[arm], "seed": seed, "output": str(folder)}
    overrides = [f"{key}={as_typed(value)}" for key, value in settings.items()]
    try:
        recipe = load_recipe(sweep.recipe, overrides)
    except ConfigError as error:
        raise ConfigError(f"Arm {arm!r}: {error}") from error
    origin = {
        "recipe": OmegaConf.to_container(OmegaConf.load(sweep.recipe), resolve=True),
        "overrides": overrides,
        "ranks": sweep.ranks,
    }
    steps = 0 if recipe.early_stop.metric else recipe.schedule.steps
    return Run(arm, seed, folder, steps, sweep.recipe, tuple(overrides), origin)


def as_typed(value: Any) -> str:
    """A value as in an override: YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _refuse_another_origin(run: Run) -> None:
    """A folder may only continue the run it was made for."""
    cure = f"Delete {run.folder}, or give the sweep another output."
    file = run.folder / ORIGIN_FILE
    if not file.exists():
        if (run.folder / "run.json").exists():
            raise ConfigError(f"{run.folder} holds a run that no sweep made. {cure}")
        return
    then = read_object(file, "the origin of a run", ConfigError, cure)
    if then == run.origin:
        return
    gone = [o for o in then["overrides"] if o not in run.origin["overrides"]]
    new = [o for o in run.origin["overrides"] if o not in then["overrides"]]
    changes = [
        *([f"its overrides were {gone} and are now {new}"] if gone or new else []),
        *([f"it had {then['ranks']} ranks and now has {run.origin['ranks']}"] if then["ranks"] != run.origin["ranks"] else []),
        *([f"the settings in {run.recipe} have changed"] if then["recipe"] != run.origin["recipe"] else []),
    ]
    raise ConfigError(f"{run.folder} was made otherwise: {'; '.join(changes) or 'its overrides had another order'}. {cure}")


def write_origin(run: Run) -> None:
    """Make the run's folder and write the origin of the run into it."""
    run.folder.mkdir(parents=True, exist_ok=True)
    write_whole(run.folder / ORIGIN_FILE, json.dumps(run.origin, indent=1))


def state(run: Run) -> State:
    """`running`: by any process that shares the disk, including an orphan of an earlier sweep."""
    if is_running(run):
        return "running"
    if not (run.folder / ORIGIN_FILE).exists():
        return "new"
    return "done" if is_done(run) else "unfinished"


def is_done(run: Run) -> bool:
    """Whether it reached its last step and finished; a run that a signal ended has not, also after its last step."""
    if not run.folder.is_dir():
        return False
    found = read_run_folder(run.folder)
    last = max((steps[-1] for steps, _ in found.series.values()), default=0)
    return bool(found.run.get("finished")) and last >= run.steps


def run_values(run: Run) -> dict[str, float]:
    """Metric -> last value of an evaluation; mean over the second half of the steps of anything else.

    A single step is noise: its rows differ between runs.
    """
    series = read_run_folder(run.folder).series
    half = max((steps[-1] for steps, _ in series.values()), default=0) / 2
    found = {}
    for name, (steps, values) in series.items():
        late = [value for step, value in zip(steps, values, strict=True) if step > half]
        found[name] = values[-1] if name.startswith(EVALUATION) or not late else statistics.fmean(late)
    return found


def is_running(run: Run) -> bool:
    """Whether any process holds the lock on the run's log."""
    if not run.log.exists():
        return False
    with run.log.open("ab") as log:
        return not lock(log)


def lock(log: IO[bytes]) -> bool:
    """Lock a run's log for this process and those that inherit the file; False when others hold it.

    The kernel releases the lock when the last process with the file ends, also if it is killed.
    """
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def describe(runs: Sequence[Run]) -> str:
    """One line per run: number, state, name and overrides."""
    width = max(len(run.name) for run in runs)
    return "\n".join(
        f"{number:>3}  {state(run):<10}  {run.name:<{width}}  {shlex.join(run.overrides)}"
        for number, run in enumerate(runs, start=1)
    )
