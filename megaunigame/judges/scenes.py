"""An independent judge of scene pictures: which colors are present, with which shape, and where.

A small convolutional network that shares nothing with the model it scores labels cells of 4 x 4 pixels; since a color
occurs at most once in a scene, the cells of one color are one object. Its own accuracy on real pictures and on
pictures after the image tokenizer is the ceiling of every generation score: print it next to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from megaunigame.errors import DataError, ModelError

COLORS = ("red", "green", "blue", "yellow", "purple", "cyan")
SHAPES = ("sphere", "cube", "cylinder", "cone")
CELL = 4
"""Side of a cell in pixels."""
WIDTH = 56
DILATIONS = (1, 2, 4, 1, 2, 4)
PRESENT_CELLS = 1.5
"""Cells a color must cover to count as an object; the smallest legal objects cover about three."""

Objects = Mapping[str, tuple[str, tuple[float, float]]]
"""color -> (shape, (x, y)); x to the right and y downwards, both 0..1 over the picture."""


@dataclass(frozen=True)
class Scores:
    """Shares are 0..1 over all objects (or images, or relations) that were scored."""

    object_accuracy: float
    """Objects of the truth found with the right color and shape."""
    color_present: float
    """Objects of the truth whose color was found."""
    all_exact: float
    """Images in which every object is right and nothing else was found."""
    extra_objects: float
    """Objects found but not in the truth, per image."""
    relation: float
    """Left-right relations of the truth that hold; an object that was not found breaks them. NaN without any."""


class Oracle(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] -> logits of color (B, 1 + colors, H / 4, W / 4) and shape (B, shapes, ...).

    Color 0 is the background.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 24, 5, stride=2, padding=2),
            nn.GroupNorm(8, 24),
            nn.SiLU(),
            nn.Conv2d(24, WIDTH, 3, stride=2, padding=1),
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(8, WIDTH), nn.SiLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=d, dilation=d))
            for d in DILATIONS
        )
        self.head = nn.Sequential(nn.GroupNorm(8, WIDTH), nn.SiLU(), nn.Conv2d(WIDTH, 1 + len(COLORS) + len(SHAPES), 1))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.stem(pictures)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        color, shape = self.head(hidden).split([1 + len(COLORS), len(SHAPES)], dim=1)
        return color, shape

    @torch.no_grad()
    def objects(self, pictures: Tensor) -> list[Objects]:
        """The objects of each picture (B, 3, H, W) in [-1, 1]."""
        found: list[Objects] = []
        for part in pictures.split(64):
            color, shape = self(part.float())
            found += read_objects(color.softmax(dim=1), shape.log_softmax(dim=1))
        return found

    def save(self, path: Path) -> None:
        """Write float16 safetensors."""
        save_file({name: value.half().contiguous() for name, value in self.state_dict().items()}, path)

    @classmethod
    def load(cls, path: Path) -> Oracle:
        """Raises ModelError when `path` is missing or does not hold an oracle."""
        if not Path(path).is_file():
            raise ModelError(f"No oracle at {path}. Make one with: launch/tiny_world.py --stage oracle")
        oracle = cls()
        try:
            weights = {name: value.float() for name, value in load_file(path).items()}
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path} cannot be read ({error}). Make one with: launch/tiny_world.py --stage oracle") from error
        if {n: v.shape for n, v in weights.items()} != {n: v.shape for n, v in oracle.state_dict().items()}:
            raise ModelError(f"{path} does not hold an oracle. Make one with: launch/tiny_world.py --stage oracle")
        oracle.load_state_dict(weights)
        return oracle.eval()


def read_objects(color: Tensor, shape: Tensor) -> list[Objects]:
    """Cell maps to objects: color (B, 1 + colors, h, w) probabilities, shape (B, shapes, h, w) log-probabilities.

    A cell belongs to its likeliest color. The shape of an object is voted by its cells, weighted by their certainty.
    """
    h, w = color.shape[-2:]
    owner = F.one_hot(color.argmax(dim=1), color.shape[1]).permute(0, 3, 1, 2)[:, 1:]
    mass = color[:, 1:] * owner  # (B, colors, h, w)
    cells = mass.sum(dim=(2, 3))  # (B, colors)
    votes = torch.einsum("bchw,bshw->bcs", mass, shape)
    x = torch.einsum("bchw,w->bc", mass, (torch.arange(w) + 0.5) / w) / cells.clamp(min=1e-6)
    y = torch.einsum("bchw,h->bc", mass, (torch.arange(h) + 0.5) / h) / cells.clamp(min=1e-6)
    return [
        {
            name: (SHAPES[int(votes[b, c].argmax())], (float(x[b, c]), float(y[b, c])))
            for c, name in enumerate(COLORS)
            if cells[b, c] >= PRESENT_CELLS
        }
        for b in range(len(color))
    ]


def score(
    found: Sequence[Objects], truth: Sequence[Objects], relations: Sequence[Sequence[tuple[str, str]]] | None = None
) -> Scores:
    """Compare the objects found in each picture with the true ones.

    `relations[i]` lists pairs (color on the left, color on the right) that must hold in picture i, such as those its
    caption states; None: no relations are scored.
    """
    relations = relations or [[] for _ in truth]
    total = present = right = exact = extra = fulfilled = stated = 0
    for seen, real, pairs in zip(found, truth, relations, strict=True):
        right_here = sum(color in seen and seen[color][0] == shape for color, (shape, _) in real.items())
        total += len(real)
        present += sum(color in seen for color in real)
        right += right_here
        exact += right_here == len(real) == len(seen)
        extra += sum(color not in real for color in seen)
        stated += len(pairs)
        fulfilled += sum(a in seen and b in seen and seen[a][1][0] < seen[b][1][0] for a, b in pairs)
    images = len(truth)
    return Scores(
        object_accuracy=right / total,
        color_present=present / total,
        all_exact=exact / images,
        extra_objects=extra / images,
        relation=fulfilled / stated if stated else float("nan"),
    )


def true_objects(meta: Mapping[str, Any]) -> Objects:
    """The objects of a scene, from the json of its sample. Raises DataError when they are not such a list."""
    try:
        return {str(thing["color"]): (str(thing["shape"]), (float(thing["x"]), float(thing["y"]))) for thing in meta["objects"]}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"`objects` must be a list of {{color, shape, x, y}} ({type(error).__name__}: {error}).") from error


def caption_relations(caption: str) -> list[tuple[str, str]]:
    """What a caption such as "a red cube left of a blue sphere" states: pairs (color on the left, on the right)."""
    for words in (" left of ", " right of "):
        if words in caption:
            chain = [next(word for word in name.split() if word in COLORS) for name in caption.split(words)]
            if words == " right of ":
                chain.reverse()
            return list(pairwise(chain))
    return []
