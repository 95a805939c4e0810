"""Captions to pictures, scored by an oracle that knows what a scene should show.

The oracle also scores the real images and their copies through the image tokenizer. No generated picture can be better than
the copies, so their score is the ceiling of the model's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megaunigame.data.conversation import caption_of
from megaunigame.data.decode import Sample
from megaunigame.errors import DataError
from megaunigame.evaluation.lockstep import Item, batches, gathered, read_share, together
from megaunigame.evaluation.pictures import write_panels
from megaunigame.evaluation.suites.base import Cell, DrawingConfig, Suite, percent, suite_result, table
from megaunigame.judges.scenes import Objects, Oracle, Scores, caption_relations, score, true_objects
from megaunigame.models.base import UnifiedModel
from megaunigame.parallel.ranks import Ranks
from megaunigame.pixels import Panel, to_bytes
from megaunigame.settings import at_least
from megaunigame.step.inputs import GenerateInputs
from megaunigame.step.rows import GenerateRow

SOURCE, TOKENIZER, GENERATED = "source", "through tokenizer", "generated"


@dataclass(frozen=True)
class _Item(Item):
    """One caption to draw."""

    caption: str
    objects: Objects = field(default_factory=dict)
    """What the picture should show; empty without an oracle."""


@dataclass(frozen=True)
class _SampleObjects:
    """What the oracle finds in the pictures of one sample, and what it should find."""

    position: int
    found: dict[str, Objects]
    truth: Objects
    relations: list[tuple[str, str]]


class Generation(Suite):
    """Text to image on held-out captions."""

    @dataclass
    class Config(DrawingConfig):
        guidance: float = 3.0
        pictures: int = at_least(0, 16)
        oracle: str = ""
        """File of the oracle that counts objects in scenes; empty: pictures only, no score."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.oracle = Oracle.load(Path(config.oracle)) if config.oracle else None

    def run(self, model: UnifiedModel, data_ranks: Ranks, folder: Path) -> dict[str, Any]:
        c = self.config
        share = read_share(self.index, c.limit, data_ranks, self.rules)
        items = together(data_ranks, lambda: [self._item(position, sample) for position, sample in share])
        generator = torch.Generator(data_ranks.device).manual_seed(c.seed + data_ranks.rank)
        panels: list[Panel] = []
        judged: list[_SampleObjects] = []
        for present, inputs in batches(model, data_ranks, items, GenerateInputs, c.batch):
            inputs = inputs.to(data_ranks.device)
            made = {
                SOURCE: inputs.targets,
                TOKENIZER: model.decode_target(model.encode_target(inputs.targets)),
                GENERATED: model.sample(inputs, guidance=c.guidance, temperature=c.temperature, generator=generator),
            }
            if self.oracle is not None:
                judged += _judge(self.oracle, present, made)
            panels += [
                Panel(item.caption, {name: to_bytes(images[i]) for name, images in made.items()}, position=item.position)
                for i, item in enumerate(present)
                if item.position < c.pictures
            ]
        pictures = write_panels(panels, data_ranks, folder)
        if self.oracle is None:
            return suite_result({}, [], pictures)
        metrics, scored = _summary(gathered(data_ranks, judged))
        return suite_result(metrics, [scored], pictures)

    def _item(self, position: int, sample: Sample) -> _Item:
        """Raises DataError when the sample lacks what this suite needs."""
        caption = caption_of(sample)
        if sample.image is None or caption is None:
            raise DataError(f"Sample {sample.key} of {self.config.shards} has no image or no `caption`; generation needs both.")
        row = GenerateRow(caption, sample.image)
        if self.oracle is None:
            return _Item(position, sample.key, row, caption)
        if "objects" not in sample.meta:
            raise DataError(f"Sample {sample.key} has no `objects` for the oracle. Leave out `oracle` to keep pictures only.")
        return _Item(position, sample.key, row, caption, true_objects(sample.meta))


def _judge(oracle: Oracle, items: Sequence[_Item], made: dict[str, Tensor]) -> list[_SampleObjects]:
    """The oracle's view of a batch."""
    found = {name: oracle.objects(images.cpu()) for name, images in made.items()}
    return [
        _SampleObjects(item.position, {n: found[n][i] for n in made}, item.objects, caption_relations(item.caption))
        for i, item in enumerate(items)
    ]


def _summary(judged: Sequence[_SampleObjects]) -> tuple[dict[str, float], dict[str, Any]]:
    truth, relations = [j.truth for j in judged], [j.relations for j in judged]
    scores = {n: score([j.found[n] for j in judged], truth, relations) for n in (SOURCE, TOKENIZER, GENERATED)}
    metrics = {
        f"{name.replace(' ', '_')}/{key}": value
        for name, scored in scores.items()
        for key, value in asdict(scored).items()
        if not math.isnan(value)
    }
    # An oracle that finds nothing in the copies gives no ceiling to compare with.
    ceiling = scores[TOKENIZER].object_accuracy
    if ceiling > 0:
        metrics["share_of_ceiling"] = scores[GENERATED].object_accuracy / ceiling
    columns = [
        *("picture", "pictures", "objects right (%)", "color present (%)", "all exact (%)", "relations right (%)"),
        "extra objects per picture",
    ]
    rows = [_score_row(name, len(judged), scored) for name, scored in scores.items()]
    return metrics, table("Objects seen by the oracle", columns, rows)


def _score_row(name: str, pictures: int, scored: Scores) -> list[Cell]:
    relation = None if math.isnan(scored.relation) else percent(scored.relation)
    shares = map(percent, (scored.object_accuracy, scored.color_present, scored.all_exact))
    return [name, pictures, *shares, relation, round(scored.extra_objects, 3)]
