"""How well the frozen image tokenizer keeps each kind of picture: PSNR of encode -> decode."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from megaunigame.data.decode import Sample
from megaunigame.data.shards.index import ShardIndex
from megaunigame.evaluation.generation_metrics import psnr
from megaunigame.evaluation.lockstep import collate, gathered, lockstep_batches, read_share, together
from megaunigame.evaluation.suites.base import Suite, suite_result, table
from megaunigame.evaluation.suites.generation import Panel, write_panels
from megaunigame.models.base import UnifiedModel
from megaunigame.parallel.world import World
from megaunigame.pixels import to_bytes
from megaunigame.registry import find
from megaunigame.representations.base import Representation
from megaunigame.settings import at_least
from megaunigame.step.requests import GENERATE
from megaunigame.step.rows import GenerateRow


@dataclass(frozen=True)
class _Copied:
    position: int
    decibels: float


class Tokenizer(Suite):
    """PSNR per representation, in dB, mean over the pictures."""

    @dataclass
    class Config:
        shards: str = MISSING
        limit: int = 128
        """Samples, the first of the shards; 0: all."""
        batch: int = at_least(1, 16)
        representations: list[str] = field(default_factory=lambda: ["pixel", "depth", "segmentation"])
        """Module names in megaunigame/representations; samples without the picture are left out."""
        pictures: int = 4
        """Samples whose pictures are kept for the report."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.index = ShardIndex.open(config.shards)
        self.representations = {n: find("representations", n, Representation)() for n in config.representations}

    def run(self, model: UnifiedModel, world: World, folder: Path) -> dict[str, Any]:
        share = read_share(self.index, self.config.limit, world)
        metrics: dict[str, float] = {}
        rows: list[list[str | int | float | None]] = []
        panels: dict[int, Panel] = {}
        for name, representation in self.representations.items():
            own = self._copy(model, world, name, representation, share, panels)
            decibels = [copied.decibels for copied in gathered(world, own)]
            if decibels:
                metrics[f"psnr/{name}"] = statistics.fmean(decibels)
            rows.append([name, len(decibels), round(statistics.fmean(decibels), 2) if decibels else None])
        columns = ["representation", "pictures", "PSNR (dB)"]
        pictures = write_panels(list(panels.values()), world, folder)
        return suite_result(metrics, [table("Image tokenizer, encode and decode", columns, rows)], pictures)

    def _copy(
        self,
        model: UnifiedModel,
        world: World,
        name: str,
        representation: Representation,
        share: list[tuple[int, Sample]],
        panels: dict[int, Panel],
    ) -> list[_Copied]:
        """PSNR of this rank's pictures of one representation; the first ones are added to `panels`."""
        drawn = [(p, s, picture) for p, s in share for picture in [representation.picture(s)] if picture is not None]
        copied: list[_Copied] = []
        for slots in lockstep_batches(drawn, self.config.batch, world):
            rows = [None if slot is None else GenerateRow("", slot[2]) for slot in slots]
            keys = ["" if slot is None else slot[1].key for slot in slots]
            inputs = together(world, collate, model, GENERATE, rows, keys, False)
            assert inputs.targets is not None
            targets = inputs.targets.to(world.device)
            copies = model.decode_target(model.encode_target(targets))
            decibels = psnr(copies, targets).tolist()
            for i, slot in enumerate(slots):
                if slot is None:
                    continue
                position, sample, _ = slot
                copied.append(_Copied(position, decibels[i]))
                if position < self.config.pictures:
                    panel = panels.setdefault(position, Panel(position, sample.key, {}))
                    panel.pictures.update({name: to_bytes(targets[i]), f"{name} through tokenizer": to_bytes(copies[i])})
        return copied
