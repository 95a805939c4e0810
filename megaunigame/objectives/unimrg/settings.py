"""Settings of UniMRG, with their checks."""

from __future__ import annotations

from dataclasses import dataclass, field

from megaunigame.errors import ConfigError
from megaunigame.registry import available, unknown
from megaunigame.representations.base import Representation
from megaunigame.settings import above, at_least, between, half_open, one_of
from megaunigame.step.requests import GEOMETRIES, SQUASH
from megaunigame.step.rotation import ROUND_ROBIN, SAMPLED

UNDERSTANDING, PIXEL = "understanding", "pixel"
RELEASED = {UNDERSTANDING: 4, "depth": 4, PIXEL: 4, "segmentation": 4}
"""The tasks of the released code, in its order."""
ALL = "all"
SCHEDULES = (ALL, ROUND_ROBIN, SAMPLED)
INDEPENDENT, PAIRED, GENERATION_PAIRED = "independent", "paired", "generation_paired"
IMAGES = (INDEPENDENT, PAIRED, GENERATION_PAIRED)
MISSING_TARGETS = ("substitute", "error")


@dataclass
class Settings:
    """Tasks, their rows, and how the source image is shown."""

    rows: dict[str, int] = at_least(0, dict)
    """Task (`understanding`, or a representation) -> rows per micro-step and rank. In rotation, tasks follow this order.

    Empty: {understanding: 4, depth: 4, pixel: 4, segmentation: 4}."""
    weights: dict[str, float] = at_least(0, dict)
    """Task -> weight of its loss; 1 where none is given."""
    schedule: str = one_of(SCHEDULES, ALL)
    """`all`: every task in every micro-step; `round_robin` (released code): one task per micro-step; `sampled`: one drawn."""
    images: str = one_of(IMAGES, INDEPENDENT)
    """`independent`: every task has its own images; `paired`: all tasks of a micro-step look at the same ones;
    `generation_paired` (released): all drawing tasks look at the same ones, understanding at others."""
    stream: str = "train"
    """Name of the stream in `data`."""
    prompts: str = "described"
    """`described`: many wordings; `paper`: the sentences of the paper's figure."""
    own_prompts: dict[str, list[str]] = field(default_factory=dict)
    """Task -> wordings to use in place of the set's."""
    renderings: dict[str, str] = field(default_factory=dict)
    """Representation -> its rendering, for example {segmentation: contours} (released code; default: regions)."""
    drop: float = half_open(0, 1, 0.1)
    """Probability that a pixel row loses its condition, text and image together, for classifier-free guidance."""
    geometry: str = one_of(GEOMETRIES, SQUASH)
    """How the source of a drawing row and its target become squares, alike. Released: `squash`. Understanding rows: `fit`."""
    source_gradient: float = between(0, 1, 1.0)
    """Factor on the gradient into the source's visual tokens. Released: 0.1 where one encoder serves both tasks, else 1."""
    source_downscale: float = at_least(1, 1.0)
    """The source of a pixel row is shrunk by this factor and enlarged again, so that codes cannot be copied; 1: not."""
    source_blur: float = at_least(0, 0.0)
    """Standard deviation, in pixels of the stored image, of a blur over the source of a pixel row; 0: none."""
    object_weight: float = above(0, 1.0)
    """Weight of the loss of depth, segmentation, ... rows where the stored segmentation has an object, relative to the
    background; 1: all alike (released). With another value samples need the segmentation."""
    missing: str = one_of(MISSING_TARGETS, "substitute")
    """A sample with an image but without the target of its row: `substitute` another sample and count it, or `error`."""
    turns: int = at_least(0, 0)
    """Understanding rows: at most this many question-answer pairs; 0: all."""
    independent: bool = False
    """Understanding rows: every question sees the image and itself only."""

    def __post_init__(self) -> None:
        self.rows = self.rows or dict(RELEASED)

    def check(self, path: str) -> None:
        tasks = [UNDERSTANDING, *available("representations", Representation)]
        for key, names in (("rows", self.rows), ("weights", self.weights), ("own_prompts", self.own_prompts)):
            for task in names:
                if task not in tasks:
                    raise ConfigError(unknown(f"task in {path}.{key}", task, tasks))
        for task in self.renderings:
            if task not in tasks[1:]:
                raise ConfigError(unknown(f"representation in {path}.renderings", task, tasks[1:]))
        if not self.tasks:
            raise ConfigError(f"{path}.rows gives no task a row. Type for example {path}.rows.depth=4.")
        if len({self.rows[task] for task in self.paired}) > 1:
            raise ConfigError(
                f"{path}.images={self.images} needs the same number of rows for {', '.join(self.paired)}; got {self.rows}."
            )
        if self.images != INDEPENDENT and self.schedule != ALL:
            raise ConfigError(
                f"{path}.images={self.images} needs all tasks in one micro-step: in rotation each has its own. Type "
                f"{path}.schedule={ALL}, or {path}.images={INDEPENDENT}."
            )

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that have rows."""
        return tuple(task for task, count in self.rows.items() if count)

    @property
    def paired(self) -> tuple[str, ...]:
        """Tasks that look at the same images; the first has its own samples, the others share them."""
        if self.images == INDEPENDENT:
            return ()
        return tuple(task for task in self.tasks if self.images == PAIRED or task != UNDERSTANDING)
