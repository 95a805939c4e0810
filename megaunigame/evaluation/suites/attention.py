"""Attention of each layer across modalities on held-out samples, compared with targets.

The report overlays the curves of the first and the last evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaunigame.attention.targets import check_targets, find_targets
from megaunigame.evaluation.attention.curves import Measuring, curve_metrics, curve_tables, measure
from megaunigame.evaluation.suites.base import Suite, SuiteConfig, suite_result
from megaunigame.models.base import UnifiedModel
from megaunigame.parallel.ranks import Ranks


class Attention(Suite):
    """Share of attention per layer and pass: mean, spread over samples, first token, distance from the targets."""

    @dataclass
    class Config(Measuring, SuiteConfig):
        targets: str = ""
        """A table (`auto`, `janus_pro`, `emu3`, `relative`), a file, or empty: no targets."""

        def check(self, path: str) -> None:
            Measuring.check(self, path)
            SuiteConfig.check(self, path)

    def __init__(self, config: Config):
        super().__init__(config)
        if config.targets:
            check_targets(config.targets)

    def needs_mask(self) -> str:
        return "independent=true" if self.config.independent else ""

    def run(self, model: UnifiedModel, data_ranks: Ranks, folder: Path) -> dict[str, Any]:
        c = self.config
        # Before measuring: only here is the depth known that a table or a file must match.
        targets = find_targets(c.targets, model.name, model.install_taps(), c.compat) if c.targets else {}
        curves = measure(model, data_ranks, self.index, c, rules=self.rules)
        return suite_result(curve_metrics(curves, targets), curve_tables(curves, targets))
