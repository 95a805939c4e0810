"""Prompts of the generated representations. One is drawn per row.

`described` has as many wordings as the released code (360 for pixels, where the request is to describe the image, 5 for
depth, 15 for segmentation); `paper` has the one sentence per task of the paper's figure.
"""

from __future__ import annotations

from itertools import product

from megaunigame.errors import ConfigError
from megaunigame.registry import unknown

ASKED = (
    *("Describe", "Explain", "Summarise", "Characterise", "Recount", "Report", "Put into words", "Lay out", "Outline"),
    "Analyse",
)
CONTENT = (
    *("what this image shows", "the content of this picture", "everything visible in the photo", "the scene in front of you"),
    *("the objects here and where they are", "the layout of this view"),
)
MANNER = (
    *("in detail", "as precisely as you can", "from front to back", "with colours, shapes and places"),
    *("so that someone could draw it again", "without leaving anything out"),
)
DEPTH = (
    "Draw how far away each part of this image is.",
    "Turn this picture into its depth map.",
    "Show the distance of everything in the scene, near parts bright.",
    "What would a depth camera record here?",
    "Paint the estimated depth of this view.",
)
SEGMENTATION = (
    "Draw the segmentation map of this image.",
    "Split this picture into its separate regions.",
    "Mark every object with a mask of its own.",
    "Outline each thing that can be seen here.",
    "Show where one object ends and the next begins.",
    "Paint the instance masks of this scene.",
    "Separate the objects from each other and from the background.",
    "Give the panoptic partition of this view.",
    "Trace the boundaries of all regions.",
    "Turn this photo into a map of its parts.",
    "Which pixels belong together? Draw the groups.",
    "Produce masks that follow the object borders.",
    "Segment everything in this picture.",
    "Draw the region map that belongs to this image.",
    "Mark the area that each object covers.",
)
EDGES = ("Draw the edges of this image.", "Turn this picture into a line drawing.", "Trace every edge you can see.")

DESCRIBED: dict[str, tuple[str, ...]] = {
    "pixel": tuple(f"{asked} {content} {manner}." for asked, content, manner in product(ASKED, CONTENT, MANNER)),
    "depth": DEPTH,
    "segmentation": SEGMENTATION,
    "edges": EDGES,
}
PAPER: dict[str, tuple[str, ...]] = {
    "pixel": ("Generate original image for the input image.",),
    "depth": ("Generate depth map for the input image.",),
    "segmentation": ("Generate segmentation map for the input image.",),
}
SETS = {"described": DESCRIBED, "paper": PAPER}


def prompts_of(task: str, name: str, own: dict[str, list[str]]) -> tuple[str, ...]:
    """The wordings of a task: the recipe's `own`, else those of the set `name`. Raises ConfigError when there is none."""
    if name not in SETS:
        raise ConfigError(unknown("value of objectives.unimrg.prompts", name, list(SETS)))
    found = tuple(own[task]) if task in own else SETS[name].get(task, ())
    if not found:
        raise ConfigError(
            f"objectives.unimrg: no prompt for the task {task!r} in the set {name!r}. Give one, for example "
            f"objectives.unimrg.own_prompts.{task}='[Draw the {task} of this image.]'."
        )
    return found
