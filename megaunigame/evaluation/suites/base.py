"""Interface of evaluation suites: settings, and one run on all ranks together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from megaunigame.data.shards.index import ShardIndex
from megaunigame.evaluation.lockstep import sample_count
from megaunigame.models.base import UnifiedModel
from megaunigame.parallel.ranks import Ranks
from megaunigame.pictures.rules import MAX_PIXELS, WHITE, PictureRules, ground_from
from megaunigame.settings import at_least

Cell = str | int | float | None


@dataclass
class SuiteConfig:
    """Settings of every suite on held-out samples."""

    shards: str = MISSING
    """Folder of held-out shards."""
    limit: int = at_least(0, 128)
    """Number of samples, the first of the shards; 0: all."""
    batch: int = at_least(1, 16)
    """Rows per forward and rank."""
    ground: str = WHITE
    """What transparent pictures lie on, as in `data.NAME.ground`."""
    max_pixels: int = at_least(1, MAX_PIXELS)
    """Width x height of the largest picture that is decoded."""

    def check(self, path: str) -> None:
        ground_from(f"{path}.ground", self.ground)


@dataclass
class DrawingConfig(SuiteConfig):
    """Settings of a suite in which the model generates pictures."""

    guidance: float = 1.0
    """Scale of classifier-free guidance; 1: none."""
    temperature: float = 1.0
    """0: the likeliest picture, where the family has one."""
    seed: int = 0
    """Of the draws of the pictures."""
    pictures: int = at_least(0, 8)
    """Samples whose pictures are kept for the report."""


@dataclass
class AskingConfig(SuiteConfig):
    """Settings of a suite in which the model answers questions."""

    questions_per_row: int = at_least(1, 8)
    """Questions of one image that share a row without seeing each other; 1: one row for each."""
    skip_kinds: list[str] = field(default_factory=lambda: ["description"])
    """Kinds that are not asked: free text has no exact match."""


class Suite(ABC):
    """One file in this folder, found by module name.

    Constructors open shards and oracles, so that a wrong path fails before training.
    """

    Config: type[Any]
    """Dataclass of the suite's settings, a `SuiteConfig`, filled from the recipe."""

    def __init__(self, config: Any):
        self.config = config
        self.index = ShardIndex.open(config.shards)
        self.rules = PictureRules(ground_from("ground of a suite", config.ground), config.max_pixels)

    def drawings(self, ranks: int) -> int:
        """Most batches of pictures that each of so many data ranks draws in a run; 0: the suite draws none."""
        if not isinstance(self.config, DrawingConfig):
            return 0
        per_rank = -(-sample_count(self.index, self.config.limit) // ranks)
        return -(-per_rank // self.config.batch)

    def needs_mask(self) -> str:
        """The setting by which parts of its rows do not see each other, as it is typed after its key; empty: none does."""
        several = isinstance(self.config, AskingConfig) and self.config.questions_per_row > 1
        return f"questions_per_row={self.config.questions_per_row}" if several else ""

    @abstractmethod
    def run(self, model: UnifiedModel, data_ranks: Ranks, folder: Path) -> dict[str, Any]:
        """Measure the model and return `suite_result(...)`, the same on every rank.

        Called without gradients, in evaluation mode. Rank 0 writes pictures into `folder`.
        """


def suite_result(
    metrics: dict[str, float],
    tables: Sequence[dict[str, Any]],
    pictures: Sequence[dict[str, str]] = (),
    questions: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """What a suite returns, ready for JSON.

    `tables` come from `table`. `pictures` are {"file", "caption", "row", "column"}, one line of the report per row.
    `questions` are {"image" (file or ""), "question", "answer", "predicted", "correct"}. Files are relative to the
    suite's folder.
    """
    return {"metrics": metrics, "tables": list(tables), "pictures": list(pictures), "questions": list(questions)}


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], about: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A table; its first column names the rows. Fractions are in percent, and the names of their columns say so.

    `about`: column -> what it means, for the report; columns of monitoring/legends.py need none.
    """
    return {"title": title, "columns": list(columns), "rows": [list(row) for row in rows], "about": dict(about or {})}


def percent(share: float) -> float:
    """0..1 as a percentage with two decimals."""
    return round(100 * share, 2)
