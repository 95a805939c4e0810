"""The plans in the header of a recipe: a block of comments, which `launch/plan_headers.py` writes.

    # Planned, not measured, by `python launch/plan_headers.py RECIPE` (docs/planning.md):
    # plan --nodes 2 model.train=lora
    #   what the plan says
    # end of the plans, inputs 0123456789ab

The lines `# plan` are written by hand: what megaunigame plan is given besides the recipe. All else is made from them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shlex
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from megaunigame.config import RANDOM, ModelConfig, Recipe, load_recipe
from megaunigame.engine.ds_config import complete_ds_config
from megaunigame.engine.model_folder import model_folder
from megaunigame.errors import ConfigError
from megaunigame.models.base import UnifiedModel
from megaunigame.planning.advice import advice
from megaunigame.planning.machines import Cluster, add_cluster_options, cluster
from megaunigame.planning.plan import Plan, make_plan
from megaunigame.planning.text import estimate
from megaunigame.planning.units import GIB
from megaunigame.registry import find

BLOCK = re.compile(r"^# Planned, not measured, by .*?^# end of the plans(?:, inputs (\w+))?\n", re.MULTILINE | re.DOTALL)
LINE = "# plan "
DEFAULT = f"{LINE}--nodes 1"
WIDTH = 130
BLOCKS_OF_A_PLAN = ("model", "objectives", "batch", "engine")
"""Parts of a recipe that a plan depends on."""
BLOCKS_SOME_HAVE = {"ema"}
"""The same, where a recipe has them."""


@dataclass(frozen=True)
class Configuration:
    """One way to run a recipe: what a line `# plan` says."""

    line: str
    recipe: Recipe
    cluster: Cluster


class Header:
    """The recipe in `path` and its block of plans.

    Raises ConfigError for a line that megaunigame plan would refuse, and for a recipe without a size to plan with.
    """

    def __init__(self, path: Path):
        self.path = path
        self.text = path.read_text()
        found = BLOCK.search(self.text)
        self.block: str = found[0] if found else ""
        self.inputs: str | None = found[1] if found else None
        lines = [line for line in self.block.splitlines() if line.startswith(LINE)] or [DEFAULT]
        self.configurations = [self._configuration(line) for line in lines]

    def planned_inputs(self) -> str:
        """A hash of all that the plans depend on, code excepted: recipe, lines, ds_configs, configuration of the model."""
        given = yaml.safe_load(self.text)
        blocks = {key: given.get(key) for key in (*BLOCKS_OF_A_PLAN, *BLOCKS_SOME_HAVE & given.keys())}
        parts: list[Any] = [blocks, [c.line for c in self.configurations]]
        for configuration in self.configurations:
            parts += [complete_ds_config(configuration.recipe, 1, configuration.cluster.ranks), asdict(configuration.cluster)]
        for family, size in sorted({(c.recipe.model.family, c.recipe.model.size) for c in self.configurations}):
            with model_folder(find("models", family, UnifiedModel), ModelConfig(size=size, weights=RANDOM)) as folder:
                files = sorted(file for file in Path(folder).rglob("*.json") if not file.name.startswith("tokenizer"))
                parts += [(file.name, json.loads(file.read_text())) for file in files]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]

    def planned(self, tell: Callable[[str], None]) -> str:
        """The text of the recipe with its plans made again; `tell` prints progress."""
        lines = [f"# Planned, not measured, by `python launch/plan_headers.py {self.path.as_posix()}` (docs/planning.md):"]
        for configuration in self.configurations:
            tell(f"{self.path}: {configuration.line.removeprefix('# ')}")
            lines += [configuration.line, *_told(make_plan(configuration.recipe, configuration.cluster))]
        lines.append(f"# end of the plans, inputs {self.planned_inputs()}")
        block = "".join(f"{line}\n" for line in lines)
        if self.block:
            return self.text.replace(self.block, block)
        settings = re.search(r"^[^#\s]", self.text, re.MULTILINE)
        assert settings is not None, "a recipe has settings"
        return self.text[: settings.start()] + block + self.text[settings.start() :]

    def _configuration(self, line: str) -> Configuration:
        parser = argparse.ArgumentParser(prog=f"{self.path}: {line}", add_help=False, exit_on_error=False)
        parser.add_argument("overrides", nargs="*")
        add_cluster_options(parser)
        try:
            options = parser.parse_intermixed_args(shlex.split(line.removeprefix(LINE)))
        except (argparse.ArgumentError, ValueError) as error:
            raise ConfigError(f"{self.path}: `{line}` is not what megaunigame plan takes: {error}.") from error
        recipe = load_recipe(str(self.path), [*options.overrides, f"model.weights={RANDOM}"])
        if not recipe.model.size:
            raise ConfigError(f"{self.path} has no model.size, so that its plan depends on a folder. Give a published size.")
        return Configuration(line, recipe, cluster(options.gpu, options.nodes, options.gpus_per_node))


def _told(plan: Plan) -> list[str]:
    """Comments: verdict, memory by part, time."""
    lines = [line.strip() for line in advice(plan)]
    trained = sum(group.trained for group in plan.shape.groups)
    ranks = f"{plan.cluster.nodes} x {plan.cluster.gpus_per_node} {plan.cluster.gpu.name}"
    lines[0] = f"{ranks}, {trained:,} parameters trained; {lines[0]}"
    parts = "; ".join(f"{name} {size / GIB:.2f}" for name, size in plan.memory.items())
    return [
        wrapped
        for text in (*lines, f"GiB of one GPU: {parts}", estimate(plan))
        for wrapped in textwrap.wrap(text, WIDTH, initial_indent="#   ", subsequent_indent="#     ", break_long_words=False)
    ]
