"""Representations of an image drawn by the model, compared with the true ones.

Every score stands between two others: the true picture after its way through the image tokenizer, which nothing that the
model draws can beat, and the true picture of another sample, which needs no look at the image.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from megaunigame.data.decode import Sample
from megaunigame.errors import ConfigError, DataError
from megaunigame.evaluation.lockstep import Item, batches, gathered, read_others, read_share, together
from megaunigame.evaluation.pictures import write_panels
from megaunigame.evaluation.suites.base import Cell, DrawingConfig, Suite, percent, suite_result, table
from megaunigame.models.base import UnifiedModel
from megaunigame.parallel.world import World
from megaunigame.pixels import Panel, to_bytes
from megaunigame.registry import find
from megaunigame.representations.base import Representation
from megaunigame.step.requests import GENERATE
from megaunigame.step.rows import GenerateRow

DRAWN, TOKENIZER, UNRELATED = "drawn", "through tokenizer", "unrelated image"


@dataclass(frozen=True)
class _Scored:
    position: int
    agreement: dict[str, float]


class Representations(Suite):
    """Draws depth, segmentation, ... of held-out images, and scores what was drawn."""

    @dataclass
    class Config(DrawingConfig):
        limit: int = 64
        temperature: float = 0.0
        prompts: dict[str, str] = field(default_factory=dict)
        """Representation -> the prompt it is asked for with, in the wording the model was trained with."""
        renderings: dict[str, str] = field(default_factory=dict)

        def check(self, path: str) -> None:
            if not self.prompts:
                raise ConfigError(f"{path} has no prompts. Give some, for example {path}.prompts={{depth: draw the depth .}}.")

    def __init__(self, config: Config):
        super().__init__(config)
        self.representations = {
            name: find("representations", name, Representation)(config.renderings.get(name, "")) for name in config.prompts
        }

    def run(self, model: UnifiedModel, world: World, folder: Path) -> dict[str, Any]:
        metrics: dict[str, float] = {}
        rows: list[list[Cell]] = []
        panels: dict[int, Panel] = {}
        for name, representation in self.representations.items():
            everyone = gathered(world, self._draw(model, world, name, representation, panels))
            means = {kind: statistics.fmean(s.agreement[kind] for s in everyone) for kind in (DRAWN, TOKENIZER, UNRELATED)}
            metrics |= {f"{name}/{kind.replace(' ', '_')}": mean for kind, mean in means.items()}
            rows.append([name, representation.measure, len(everyone), *map(percent, means.values())])
        columns = ["representation", "measure", "pictures", *(f"{kind} (%)" for kind in (DRAWN, TOKENIZER, UNRELATED))]
        scores = table("Agreement with the true picture", columns, rows)
        return suite_result(metrics, [scores], write_panels(list(panels.values()), world, folder))

    def _items(
        self, samples: list[tuple[int, Sample]], others: dict[int, Sample], name: str, representation: Representation
    ) -> tuple[list[Item], list[Item]]:
        """What is to be drawn of each image; and in its place the true picture of another sample."""
        prompt = self.config.prompts[name]
        asked: list[Item] = []
        unrelated: list[Item] = []
        for position, sample in samples:
            truth, other = representation.picture(sample), representation.picture(others[position])
            if sample.image is None or truth is None or other is None:
                shards, needs = self.config.shards, representation.needs
                raise DataError(f"Sample {sample.key} of {shards} (or the one it is compared with) has no image or no {needs}.")
            asked.append(Item(position, sample.key, GenerateRow(prompt, truth, sample.image)))
            unrelated.append(Item(position, sample.key, GenerateRow(prompt, other, sample.image)))
        return asked, unrelated

    def _draw(
        self, model: UnifiedModel, world: World, name: str, representation: Representation, panels: dict[int, Panel]
    ) -> list[_Scored]:
        """Scores of this rank's share of the samples; some pictures are added to `panels`, whose lines are samples."""
        c = self.config
        samples = read_share(self.index, c.limit, world)
        others = dict(read_others(self.index, c.limit, world))
        asked, unrelated = together(world, self._items, samples, others, name, representation)
        generator = torch.Generator(world.device).manual_seed(c.seed + world.rank)
        images = {position: sample.image for position, sample in samples if sample.image is not None}
        scored: list[_Scored] = []
        both = (batches(model, world, items, GENERATE, c.batch, takes_source=True) for items in (asked, unrelated))
        for (present, inputs), (_, other) in zip(*both, strict=True):
            inputs = inputs.to(world.device)
            assert inputs.targets is not None and other.targets is not None
            truth = to_bytes(inputs.targets)
            made = {
                DRAWN: to_bytes(model.sample(inputs, guidance=c.guidance, temperature=c.temperature, generator=generator)),
                TOKENIZER: to_bytes(model.decode_target(model.encode_target(inputs.targets))),
                UNRELATED: to_bytes(other.targets),
            }
            for i, item in enumerate(present):
                scored.append(_Scored(item.position, {k: representation.agreement(p[i], truth[i]) for k, p in made.items()}))
                if item.position < c.pictures:
                    shown = {"source": images[item.position], f"{name} true": truth[i], f"{name} drawn": made[DRAWN][i]}
                    panel = panels.setdefault(item.position, Panel(item.key, {}, position=item.position))
                    panel.pictures.update(shown)
        return scored
