"""How much a model attends across modalities in each layer, on held-out samples, teacher forced.

Understand: from the answers about a picture to the picture; generate: from the picture drawn for a caption to the caption
(`megaunigame.attention.positions`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megaunigame.attention.positions import measurable
from megaunigame.attention.targets import Target, Targets
from megaunigame.data.conversation import TALK_KEYS, caption_of, question_answers
from megaunigame.data.decode import Sample
from megaunigame.data.shards.index import ShardIndex
from megaunigame.errors import ConfigError, DataError, ModelError
from megaunigame.evaluation.lockstep import Item, batches, gathered, read_share, sample_count, together
from megaunigame.evaluation.suites.base import Cell, percent, table
from megaunigame.models.base import UnifiedModel
from megaunigame.monitoring import names
from megaunigame.parallel.ranks import Ranks
from megaunigame.pictures.rules import DEFAULT_RULES, PictureRules
from megaunigame.settings import at_least, one_of
from megaunigame.step.inputs import GenerateInputs, PassInputs, Taps, UnderstandInputs
from megaunigame.step.requests import GENERATE, UNDERSTAND
from megaunigame.step.rows import GenerateRow, Row, UnderstandRow

PASSES: dict[str, type[PassInputs]] = {UNDERSTAND: UnderstandInputs, GENERATE: GenerateInputs}
NEEDS = {UNDERSTAND: "an image and `conversations`", GENERATE: "an image and a `caption`"}
DIRECTION = {UNDERSTAND: "answers to the picture (understand)", GENERATE: "the drawn picture to the text (generate)"}


@dataclass
class Measuring:
    """What is measured, and on how many samples."""

    limit: int = at_least(0, 100)
    """Number of samples, the first of the shards; 0: all."""
    batch: int = at_least(1, 16)
    """Rows per forward and rank."""
    passes: list[str] = one_of(PASSES, lambda: list(PASSES))
    """`understand` needs samples with an image and `conversations`, `generate` with an image and a `caption`."""
    independent: bool = False
    """Every question sees the image and itself only; False: later turns see earlier ones."""
    exclude_bos: bool = False
    """Exclude the first token (an attention sink) from the text that a drawn picture attends to."""
    compat: bool = False
    """Use the positions of the released code instead of the exact ones."""

    def check(self, path: str) -> None:
        if not self.passes:
            raise ConfigError(f"{path}.passes is empty; name {' or '.join(PASSES)}.")


@dataclass(frozen=True)
class Curve:
    """Shares of attention, in [0, 1], one number per layer, over the measured samples."""

    mean: list[float]
    spread: list[float]
    """Standard deviation over the samples."""
    first: list[float]
    """Mean share on the first token."""
    samples: int

    def distance(self, layer_targets: Sequence[Target]) -> float:
        """Mean over the layers of |mean - target|."""
        return float(np.mean([abs(m - each.target) for m, each in zip(self.mean, layer_targets, strict=True)]))


@dataclass(frozen=True)
class SampleShares:
    """Shares of one sample, by layer."""

    position: int
    """Place of the sample in the order of the shards."""
    keys: Tensor
    """(L,)."""
    first: Tensor
    """(L,)."""


@torch.no_grad()
def measure(
    model: UnifiedModel,
    data_ranks: Ranks,
    index: ShardIndex,
    settings: Measuring,
    progress: bool = False,
    rules: PictureRules = DEFAULT_RULES,
) -> dict[str, Curve]:
    """Pass -> its curve. All ranks call this together.

    Samples that lack what a pass needs, and rows that were cut at the model's max_length, are not counted. Raises DataError
    when a pass has no samples left, ModelError when the attention of the model cannot be measured.
    """
    taps = Taps(tuple(range(model.install_taps())), exclude_bos=settings.exclude_bos, compat=settings.compat)
    samples = read_share(index, settings.limit, data_ranks, rules)
    curves = {}
    for name in settings.passes:
        everyone = gathered(data_ranks, _shares(model, data_ranks, name, samples, settings, taps, progress))
        if not everyone:
            raise DataError(
                f"Nothing to measure for {name}: it needs {NEEDS[name]} in a row that fits into max_length, and none of the "
                f"first {sample_count(index, settings.limit)} samples of {index.location} gives that. Give other shards, more "
                f"samples or a longer max_length, or leave {name} out of the passes."
            )
        curves[name] = curve_of(everyone)
    return curves


def curve_of(found: Sequence[SampleShares]) -> Curve:
    """The curve of measured samples, at least one."""
    keys = np.stack([sample.keys.numpy() for sample in found]).astype(np.float64)
    first = np.stack([sample.first.numpy() for sample in found]).astype(np.float64)
    return Curve(keys.mean(0).tolist(), keys.std(0).tolist(), first.mean(0).tolist(), len(found))


def _shares(
    model: UnifiedModel,
    data_ranks: Ranks,
    pass_name: str,
    samples: Sequence[tuple[int, Sample]],
    settings: Measuring,
    taps: Taps,
    progress: bool,
) -> list[SampleShares]:
    """Measurements of this rank's samples."""
    built = together(data_ranks, lambda: [(position, s.key, _row(pass_name, s, settings)) for position, s in samples])
    items = [Item(position, key, row) for position, key, row in built if row is not None]
    found: list[SampleShares] = []
    title = pass_name if progress else ""
    for present, inputs in batches(model, data_ranks, items, PASSES[pass_name], settings.batch, progress=title):
        inputs = dataclasses.replace(inputs, taps=taps)
        counted = measurable(inputs, taps)
        shares = model(inputs.to(data_ranks.device)).attention
        if shares is None:
            raise ModelError(f"The {pass_name} pass of this family does not measure its attention. Leave it out of the passes.")
        of_keys, of_first = shares.keys.cpu(), shares.first.cpu()
        found += [SampleShares(item.position, of_keys[:, i], of_first[:, i]) for i, item in enumerate(present) if counted[i]]
    return found


def _row(pass_name: str, sample: Sample, settings: Measuring) -> Row | None:
    """The row of a sample, or None when it lacks what the pass needs."""
    if sample.image is None:
        return None
    if pass_name == GENERATE:
        caption = caption_of(sample)
        return None if caption is None else GenerateRow(caption, sample.image)
    if not any(key in sample.meta for key in TALK_KEYS):
        return None
    return UnderstandRow(sample.images, question_answers(sample, apart=settings.independent), settings.independent)


def curve_metrics(curves: Mapping[str, Curve], targets: Targets) -> dict[str, float]:
    """Metrics of all curves, by name; `targets` may lack passes."""
    metrics: dict[str, float] = {}
    for name, curve in curves.items():
        lines: dict[str, Sequence[float]] = {
            names.ATTENTION_LAYER: curve.mean,
            names.ATTENTION_SPREAD: curve.spread,
            names.ATTENTION_FIRST_LAYER: curve.first,
        }
        if name in targets:
            lines[names.ATTENTION_TARGET] = [each.target for each in targets[name]]
            metrics[names.attended(name, names.ATTENTION_DISTANCE)] = curve.distance(targets[name])
        metrics[names.attended(name, names.ATTENTION_FIRST)] = float(np.mean(curve.first))
        metrics[names.attended(name, names.ATTENTION_COUNTED)] = float(curve.samples)
        metrics |= {names.attended(name, what, i): v for what, values in lines.items() for i, v in enumerate(values)}
    return metrics


def curve_tables(curves: Mapping[str, Curve], targets: Targets) -> list[dict[str, Any]]:
    """One table of the passes, and one of the layers of each."""
    passes: list[list[Cell]] = []
    layers = []
    for name, curve in curves.items():
        layer_targets = targets.get(name)
        distance = None if layer_targets is None else percent(curve.distance(layer_targets))
        passes.append([name, curve.samples, distance, percent(float(np.mean(curve.first)))])
        wanted = [None] * len(curve.mean) if layer_targets is None else [percent(each.target) for each in layer_targets]
        columns = ["layer", "mean (%)", "spread over samples (%)", "target (%)", "first token (%)"]
        numbers = zip(curve.mean, curve.spread, wanted, curve.first, strict=True)
        rows = [[str(i), percent(m), percent(s), t, percent(f)] for i, (m, s, t, f) in enumerate(numbers)]
        layers.append(table(f"Attention of {DIRECTION[name]}", columns, rows))
    columns = ["pass", "samples", "distance from the targets (%)", "first token (%)"]
    return [table("Attention across modalities, mean over the layers", columns, passes), *layers]
