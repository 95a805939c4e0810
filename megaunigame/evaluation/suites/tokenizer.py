"""How well the frozen image tokenizer keeps each kind of picture: PSNR of encode -> decode."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megaunigame.data.decode import Sample
from megaunigame.evaluation.lockstep import Item, batches, gathered, read_share
from megaunigame.evaluation.pictures import write_panels
from megaunigame.evaluation.suites.base import Suite, SuiteConfig, suite_result, table
from megaunigame.models.base import UnifiedModel
from megaunigame.parallel.ranks import Ranks
from megaunigame.pixels import Panel, psnr, to_bytes
from megaunigame.registry import find
from megaunigame.representations.base import Representation
from megaunigame.settings import at_least
from megaunigame.step.inputs import GenerateInputs
from megaunigame.step.rows import GenerateRow


@dataclass(frozen=True)
class _SamplePsnr:
    position: int
    decibels: float


class Tokenizer(Suite):
    """PSNR per representation, in dB, mean over the pictures."""

    @dataclass
    class Config(SuiteConfig):
        representations: list[str] = field(default_factory=lambda: ["pixel", "depth", "segmentation"])
        """Module names in megaunigame/representations; samples without the picture are left out."""
        pictures: int = at_least(0, 4)
        """Samples whose pictures are kept for the report."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.representations = {n: find("representations", n, Representation)() for n in config.representations}

    def run(self, model: UnifiedModel, data_ranks: Ranks, folder: Path) -> dict[str, Any]:
        share = read_share(self.index, self.config.limit, data_ranks, self.rules)
        metrics: dict[str, float] = {}
        rows: list[list[str | int | float | None]] = []
        panels: dict[int, Panel] = {}
        for name, representation in self.representations.items():
            own = self._copy(model, data_ranks, name, representation, share, panels)
            decibels = [copied.decibels for copied in gathered(data_ranks, own)]
            if decibels:
                metrics[f"psnr/{name}"] = statistics.fmean(decibels)
            rows.append([name, len(decibels), round(statistics.fmean(decibels), 2) if decibels else None])
        columns = ["representation", "pictures", "PSNR (dB)"]
        pictures = write_panels(list(panels.values()), data_ranks, folder)
        return suite_result(metrics, [table("Image tokenizer, encode and decode", columns, rows)], pictures)

    def _copy(
        self,
        model: UnifiedModel,
        data_ranks: Ranks,
        name: str,
        representation: Representation,
        share: list[tuple[int, Sample]],
        panels: dict[int, Panel],
    ) -> list[_SamplePsnr]:
        """PSNR of this rank's pictures of one representation; the first ones are added to `panels`."""
        drawn = ((position, sample.key, representation.picture(sample)) for position, sample in share)
        items = [Item(position, key, GenerateRow("", picture)) for position, key, picture in drawn if picture is not None]
        copied: list[_SamplePsnr] = []
        for present, inputs in batches(model, data_ranks, items, GenerateInputs, self.config.batch):
            targets = inputs.targets.to(data_ranks.device)
            copies = model.decode_target(model.encode_target(targets))
            decibels = psnr(copies, targets).tolist()
            for i, item in enumerate(present):
                copied.append(_SamplePsnr(item.position, decibels[i]))
                if item.position < self.config.pictures:
                    panel = panels.setdefault(item.position, Panel(item.key, {}, position=item.position))
                    panel.pictures.update({name: to_bytes(targets[i]), f"{name} through tokenizer": to_bytes(copies[i])})
        return copied
