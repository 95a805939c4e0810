"""The settings of UniMRG, and what is legal among them."""

from __future__ import annotations

from dataclasses import dataclass, field

from megaunigame.errors import ConfigError
from megaunigame.registry import available, unknown
from megaunigame.representations.base import Representation
from megaunigame.step.rotation import ROUND_ROBIN, SAMPLED

UNDERSTANDING, PIXEL = "understanding", "pixel"
RELEASED = {UNDERSTANDING: 4, "depth": 4, PIXEL: 4, "segmentation": 4}
"""The tasks of the released code, in its order."""
ALL = "all"
SCHEDULES = (ALL, ROUND_ROBIN, SAMPLED)
IMAGES = ("independent", "paired")
MISSING_TARGETS = ("substitute", "error")


@dataclass
class Settings:
    """Tasks, their rows, and how the condition is shown."""

    rows: dict[str, int] = field(default_factory=dict)
    """Task (`understanding`, or a representation) -> rows per micro-step and rank. Where tasks take turns, in this order.

    Empty: {understanding: 4, depth: 4, pixel: 4, segmentation: 4}."""
    weights: dict[str, float] = field(default_factory=dict)
    """Task -> weight of its loss; 1 where none is given."""
    schedule: str = ALL
    """`all`: every task in every micro-step; `round_robin` (released code): one task per micro-step; `sampled`: one drawn."""
    images: str = "independent"
    """`independent`: every task has images of its own; `paired`: all tasks of a micro-step look at the same ones."""
    stream: str = "train"
    prompts: str = "described"
    """`described`: many wordings; `paper`: the sentences of the paper's figure."""
    own_prompts: dict[str, list[str]] = field(default_factory=dict)
    """Task -> wordings to use in place of the set's."""
    renderings: dict[str, str] = field(default_factory=dict)
    """Representation -> how it is drawn, for example {segmentation: contours} (released code; default: regions)."""
    drop: float = 0.1
    """Probability that a pixel row loses its condition, text and image together, for classifier-free guidance."""
    source_gradient: float = 1.0
    """Factor on the gradient into the source's visual tokens. Released: 0.1 where one encoder serves both tasks, else 1."""
    source_downscale: float = 1.0
    """The source of a pixel row is shrunk by this factor and enlarged again, so that codes cannot be copied; 1: not."""
    source_blur: float = 0.0
    """Standard deviation, in pixels of the stored image, of a blur over the source of a pixel row; 0: none."""
    missing: str = "substitute"
    """A sample with an image but without the target of its row: `substitute` another sample and count it, or `error`."""
    turns: int = 0
    """Understanding rows: at most this many question-answer pairs; 0: all."""
    independent: bool = False
    """Understanding rows: every question sees the image and itself only."""

    def check(self) -> None:
        """Fill in the released tasks. Raises ConfigError naming the key, what was got and what is legal."""
        self.rows = self.rows or dict(RELEASED)
        where, tasks = "objectives.unimrg", [UNDERSTANDING, *available("representations", Representation)]
        for key, names in (("rows", self.rows), ("weights", self.weights), ("own_prompts", self.own_prompts)):
            for task in names:
                if task not in tasks:
                    raise ConfigError(unknown(f"task in {where}.{key}", task, tasks))
        for task in self.renderings:
            if task not in tasks[1:]:
                raise ConfigError(unknown(f"representation in {where}.renderings", task, tasks[1:]))
        for key, got, legal in (
            ("schedule", self.schedule, SCHEDULES),
            ("images", self.images, IMAGES),
            ("missing", self.missing, MISSING_TARGETS),
        ):
            if got not in legal:
                raise ConfigError(unknown(f"value of {where}.{key}", got, list(legal)))
        if any(count < 0 for count in self.rows.values()):
            raise ConfigError(f"{where}.rows must be 0 or more each; got {self.rows}.")
        if any(weight < 0 for weight in self.weights.values()):
            raise ConfigError(f"{where}.weights must be 0 or more each; got {self.weights}.")
        if not 0 <= self.drop < 1:
            raise ConfigError(f"{where}.drop must lie in [0, 1); got {self.drop}. Usual: 0.1.")
        if self.source_downscale < 1 or self.source_blur < 0:
            raise ConfigError(
                f"{where}: source_downscale must be 1 or more and source_blur 0 or more; got {self.source_downscale:g} and "
                f"{self.source_blur:g}."
            )
        if not 0 <= self.source_gradient <= 1:
            raise ConfigError(f"{where}.source_gradient must lie in [0, 1]; got {self.source_gradient:g}.")
        if self.images == "paired" and self.schedule == ALL and len({c for c in self.rows.values() if c}) > 1:
            raise ConfigError(f"{where}.images=paired needs the same number of rows for every task; got {self.rows}.")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that have rows."""
        return tuple(task for task, count in self.rows.items() if count)
