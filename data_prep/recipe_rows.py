"""`--for RECIPE`: the rows that a recipe would make of a folder of shards, before anything is trained."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from megaunigame.config import OFF, PARTIAL, LoaderConfig, ModelConfig, Recipe, load_recipe
from megaunigame.data.decode import Sample, decode_sample
from megaunigame.data.shards.index import ShardIndex
from megaunigame.data.sources.opening import rules_of
from megaunigame.engine.model_folder import model_folder
from megaunigame.errors import ConfigError, DataError
from megaunigame.models.base import Processor, UnifiedModel
from megaunigame.objectives.base import Objective
from megaunigame.objectives.building import build_objectives, build_plan
from megaunigame.pictures.rules import PictureRules
from megaunigame.registry import find
from megaunigame.step.requests import RowRequest, StepPlan
from megaunigame.step.row_limits import FIRST_ROWS, enough_rows

from .picture_statistics import fields_at, spread

LONGEST_REASON = 240


@dataclass
class Findings:
    """What the samples give to one term."""

    request: RowRequest
    filled: int = 0
    cut: int = 0
    """Of the filled: with text that does not fit into model.max_length."""
    none: int = 0
    """Without what the rows need: dummies in a run."""
    bad: Counter[str] = field(default_factory=Counter)
    """Reason -> samples that a run would replace."""
    stops: str = ""
    """What ends a run at once, if a sample does."""

    @property
    def samples(self) -> int:
        return self.filled + self.none + self.bad.total()

    def refusal(self, limits: LoaderConfig, whole: bool) -> str:
        """Why a run would stop; empty: it would not. `whole`: these are all samples that there are."""
        term = self.request.term
        if self.stops:
            return f"{term}: {self.stops}"
        may_lack_all = limits.max_dummy_fraction >= 1 and self.none > 0
        if not self.filled and not may_lack_all and (whole or self.samples >= enough_rows(limits.max_dummy_fraction)):
            return f"{term} gets no row: {self._most_frequent()}"
        least = 0 if whole else FIRST_ROWS
        if self.none > limits.max_dummy_fraction * max(self.filled + self.none, least):
            return f"{term}: more dummies than loader.max_dummy_fraction={limits.max_dummy_fraction:g} allows"
        if self.cut > limits.max_cut_fraction * max(self.filled, least):
            return f"{term}: more rows are cut than loader.max_cut_fraction={limits.max_cut_fraction:g} allows"
        if self.bad.total() > limits.max_bad_fraction * self.samples:
            return f"{term}: more bad samples than loader.max_bad_fraction={limits.max_bad_fraction:g} allows"
        return ""

    def _most_frequent(self) -> str:
        if self.bad.total() > self.none:
            return self.bad.most_common(1)[0][0]
        return f"the samples lack {self.request.needs or 'what its rows are made of'}"


def add_option(parser: argparse.ArgumentParser) -> None:
    """`--for RECIPE [key=value ...]`, of the commands that can say what a recipe finds."""
    parser.add_argument(
        "--for",
        dest="recipe",
        nargs="+",
        metavar=("RECIPE", "KEY=VALUE"),
        help="also show the rows that this recipe would make of the shards: filled, cut, dummies, bad samples",
    )


def print_rows(folder: Path, given: list[str], samples: int) -> bool:
    """Print the rows that a recipe and its overrides would make of `folder`; returns whether a run would go on with them.

    `samples`, spread evenly, are looked at. Raises UserError for a recipe that cannot be read or planned.
    """
    recipe = load_recipe(given[0], given[1:])
    index = ShardIndex.open(folder)
    positions = spread(index, samples)
    found = find_rows(recipe, streams_of(folder, recipe), index, positions)
    print(f"\nrows that {given[0]} makes of {len(positions):,} of {index.samples:,} samples (its filters are not applied):")
    print(f"{'term':<16}{'filled':>9}{'cut':>9}{'dummies':>9}{'bad':>9}")
    for one in found:
        print(f"{one.request.term:<16}{one.filled:>9,}{one.cut:>9,}{one.none:>9,}{one.bad.total():>9,}")
        for reason, count in one.bad.most_common(3):
            print(f"{'':<16}{count:,} x {reason[:LONGEST_REASON]}")
    whole = len(positions) == index.samples
    refusals = [refusal for one in found if (refusal := one.refusal(recipe.loader, whole))]
    for refusal in refusals:
        print(f"a run would stop: {refusal}")
    return not refusals


def streams_of(folder: Path, recipe: Recipe) -> list[str]:
    """The recipe's streams that read `folder`; its only stream reads whatever is looked at.

    Raises ConfigError when it has several and none of them does.
    """
    if len(recipe.data) == 1:
        return list(recipe.data)
    places = {name: [stream.shards, *(part.shards for part in stream.mix.values())] for name, stream in recipe.data.items()}
    found = [name for name, given in places.items() if folder.resolve() in [Path(place).resolve() for place in given if place]]
    if not found:
        raise ConfigError(
            f"The recipe has the streams {', '.join(places)}, and none of them reads {folder}. Name the one that should, after "
            f"the recipe: data.{min(places)}.shards={folder}"
        )
    return found


def find_rows(recipe: Recipe, streams: Sequence[str], index: ShardIndex, positions: np.ndarray) -> list[Findings]:
    """Make every row that the plan of the recipe draws from `streams` of each sample at `positions`."""
    objectives = build_objectives(recipe, planned=True)
    plan = build_plan(objectives)
    objective_of = {request.term: objective for objective in objectives for request in objective.rows()}
    found = [Findings(request) for request in plan.requests if request.stream in streams]
    rules = {one.request.term: _rules_of(one.request, recipe) for one in found}
    family, processor = processor_of(recipe.model)
    if recipe.model.stored_codes != OFF:  # which tokenizer made them, only a loaded one could say
        family.accept_codes(processor, None, partial=recipe.model.stored_codes == PARTIAL)
    for position in tqdm(positions, desc="rows", unit="sample", delay=2, leave=False):
        for one, made in zip(found, _made(index, int(position), plan, found, objective_of, processor, rules), strict=True):
            if isinstance(made, ConfigError):
                one.bad[str(made)] += 1
                one.stops = one.stops or str(made)
            elif isinstance(made, str):
                one.bad[made] += 1
            elif made is None:
                one.none += 1
            else:
                one.filled, one.cut = one.filled + 1, one.cut + made
    return found


def processor_of(model: ModelConfig) -> tuple[type[UnifiedModel], Processor]:
    """The family of a recipe's model, and its processor; no weights are read. Raises UserError."""
    family = find("models", model.family, UnifiedModel)
    with model_folder(family, model) as path:
        return family, family.open_processor(path, max_length=model.max_length)


def _made(
    index: ShardIndex,
    position: int,
    plan: StepPlan,
    found: list[Findings],
    objective_of: dict[str, Objective],
    processor: Processor,
    rules: dict[str, PictureRules],
) -> Iterator[bool | str | ConfigError | None]:
    """Per term: whether the row is cut; None: no row; why the sample is bad; or what ends a run."""
    key, fields = fields_at(index, position)
    samples: dict[PictureRules, Sample] = {}  # a sample keeps what it has decoded
    for one in found:
        rule = rules[one.request.term]
        try:
            sample = samples[rule] = samples.get(rule) or decode_sample(key, fields, rule)
            yield _cut(one.request, sample, plan, objective_of[one.request.term], processor, position)
        except DataError as error:
            yield str(error).replace(key, "...")
        except ConfigError as error:
            yield error


def _rules_of(request: RowRequest, recipe: Recipe) -> PictureRules:
    """How a run reads the pictures of the stream that the request draws from."""
    assert request.stream is not None
    return rules_of(request.stream, recipe.data[request.stream])


def _cut(
    request: RowRequest, sample: Sample, plan: StepPlan, objective: Objective, processor: Processor, position: int
) -> bool | None:
    row = objective.row(request, sample, np.random.default_rng(position))
    if row is None:
        return None
    inputs = processor.collate(plan.alone(request), request.pass_name, [row], [0], [sample.key])
    return inputs.cut is not None and bool(inputs.cut[0])
