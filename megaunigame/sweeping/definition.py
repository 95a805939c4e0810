"""The sweep file: one YAML file with arms, seeds, and the metrics to compare."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml
from omegaconf import MISSING

from megaunigame.errors import ConfigError
from megaunigame.registry import unknown
from megaunigame.settings import at_least, fill, read
from megaunigame.shipped import RECIPES, SWEEPS, yaml_file

FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]*")
OWN_KEYS = ("output", "seed")
"""Settings of a recipe that the sweep sets for each run."""


@dataclass
class Axis:
    """The horizontal axis of the plot."""

    title: str = ""
    """Label of the axis; empty: no axis."""
    values: dict[str, float] = field(default_factory=dict)
    """Arm -> its x. A baseline without x is drawn as a horizontal line."""
    log: bool = False
    """Logarithmic."""


@dataclass
class Sweep:
    """Arms x seeds. Overrides are `dotted.key: value`, as in `megaunigame train RECIPE dotted.key=value`."""

    name: str = MISSING
    """Title of table and plot."""
    output: str = MISSING
    """Folder of the sweep; a run is OUTPUT/ARM/seed-S."""
    recipe: str = MISSING
    """The recipe that every run begins from."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """`seed` of the runs of each arm."""
    ranks: int = at_least(1, 1)
    """Processes of one run."""
    jobs: int = at_least(0, 0)
    """Runs at a time; 0: as many as fit on the cores or GPUs of this machine."""
    common: dict[str, Any] = field(default_factory=dict)
    """Overrides of all runs; an arm that sets the same key wins."""
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name of an arm -> its overrides; `{}` is the recipe itself."""
    baseline: str = ""
    """The arm that the others are compared with; empty: no comparison."""
    x: Axis = field(default_factory=Axis)
    """Empty: the plot has one line per arm instead of an axis."""
    metrics: dict[str, str] = field(default_factory=dict)
    """Title of a column -> name of a metric in metrics.jsonl: the last value of an evaluation, of others the mean over the
    second half of the steps."""

    def check(self, path: str) -> None:
        arms = list(self.arms)
        for arm in arms:
            if not FOLDER_NAME.fullmatch(arm):
                raise ConfigError(
                    f"Arm {arm!r} names a folder: use letters, digits and . _ = - only, the first a letter or digit."
                )
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(
                f"{path}.seeds must be one or more different numbers, for example seeds=[0,1,2]; got {self.seeds}."
            )
        if not self.metrics:
            raise ConfigError(f"{path}.metrics is empty. Name what is compared, for example metrics: {{loss: loss/total}}.")
        if self.baseline and self.baseline not in arms:
            raise ConfigError(f"{path}.baseline: " + unknown("arm", self.baseline, arms))
        if self.x.title or self.x.values:
            _check_axis(self.x, f"{path}.x", arms, self.baseline)


def load_sweep(path: str, overrides: list[str], settings: list[str]) -> Sweep:
    """The sweep file at `path`. Raises ConfigError that names the key and what is legal.

    `overrides`: `key=value` for the file itself, YAML values (`seeds=[0]`, `x.log=true`). `settings`: `dotted.key=value` for
    every run, added to `common`; refused if an arm sets the same setting.
    """
    for text in (*overrides, *settings):
        if "=" not in text:
            raise ConfigError(f"{text!r} has no '='. Write key=value, for example seeds=[0] or --set schedule.steps=20.")
    try:
        for_all = {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in settings)}
    except yaml.YAMLError as error:
        raise ConfigError(f"A value of --set is not legal YAML: {error}") from error
    plain = read(path, overrides, "sweep file", SWEEPS)
    _check_overrides(plain)
    sweep = fill(Sweep, plain, "sweep")
    _refuse_conflicts(for_all, sweep.arms)
    sweep.common |= for_all
    sweep.recipe = yaml_file(sweep.recipe, RECIPES, "recipe")
    return sweep


def _check_overrides(plain: dict[str, Any]) -> None:
    """`common` and every arm must be flat mappings of dotted keys, without OWN_KEYS."""
    arms = plain.get("arms")
    if not isinstance(arms, dict) or not arms:
        raise ConfigError("sweep.arms must name at least one arm, for example arms: {sft: {}, hard: {optimizer.lr: 1.0e-4}}.")
    blocks = {f"sweep.arms.{name}": overrides for name, overrides in arms.items()}
    if "common" in plain:
        blocks["sweep.common"] = plain["common"]
    for where, overrides in blocks.items():
        if not isinstance(overrides, dict):
            raise ConfigError(
                f"{where} must be a mapping of overrides ({{}} for none), such as {{optimizer.lr: 1.0e-4}}; got {overrides!r}."
            )
        for key in OWN_KEYS:
            if key in overrides:
                raise ConfigError(
                    f"{where} sets {key!r}, which the sweep gives to each run itself: use the sweep's `output` and `seeds`."
                )


def _check_axis(x: Axis, path: str, arms: list[str], baseline: str) -> None:
    if not x.title or not x.values:
        raise ConfigError(
            f"{path} needs both a title and values, for example x: {{title: eps_max, values: {{small: 0.01, large: 0.1}}}}."
        )
    for arm, value in x.values.items():
        if arm not in arms:
            raise ConfigError(f"{path}.values: " + unknown("arm", arm, arms))
        if x.log and value <= 0:
            raise ConfigError(f"{path}.values.{arm} is {value}, which a logarithmic axis cannot show. Leave x.log out.")
    without = [arm for arm in arms if arm not in x.values and arm != baseline]
    if without:
        raise ConfigError(f"{path}.values has no value for arm {without[0]!r}; only the baseline may do without one.")


def _refuse_conflicts(for_all: dict[str, Any], arms: dict[str, dict[str, Any]]) -> None:
    """Settings for all runs must not override settings of arms, or be overridden by them."""
    for key in for_all:
        if key in OWN_KEYS:
            raise ConfigError(
                f"--set {key}: the sweep gives it to each run itself. Type output=FOLDER or seeds=[...] without --set."
            )
        for arm, overrides in arms.items():
            for own in overrides:
                if f"{own}.".startswith(f"{key}.") or f"{key}.".startswith(f"{own}."):
                    raise ConfigError(
                        f"--set {key} and arm {arm!r}, which sets {own}, exclude each other. Edit the arm instead."
                    )
