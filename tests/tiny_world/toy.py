"""Cheap scenes, flat discs and squares on a shaded ground, enough for a few training steps; and a training that dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from megaunigame.tiny_world.loop import LoopSettings, Stage
from megaunigame.tiny_world.scenes import Scenes, contours

COLORS = {"red": (200, 40, 40), "green": (40, 170, 60), "blue": (40, 60, 200), "yellow": (220, 200, 50)}


@contextmanager
def interrupted(stage: type[Stage], at: int) -> Iterator[None]:
    """The training inside of the block dies when `stage` comes to this step."""
    original = stage.loss

    def dying(self, step, generator):
        if step == at:
            raise KeyboardInterrupt
        return original(self, step, generator)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage, "loss", dying)
        yield


def loop(steps: int, learning_rate: float = 1e-3, seed: int = 0) -> LoopSettings:
    """Saves after every step."""
    return LoopSettings(steps=steps, learning_rate=learning_rate, seed=seed, save_every_seconds=0)


def toy_scenes(count: int, seed: int = 0, size: int = 64) -> Scenes:
    """`count` scenes of 1-3 objects of different colors."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    pictures: dict[str, list[torch.Tensor]] = {"rgb": [], "depth": [], "regions": [], "contours": []}
    segmentations, metas = [], []
    for _ in range(count):
        image = (90 + 80 * y + rng.normal(0, 3, (size, size)))[..., None].repeat(3, 2)
        depth, ids, objects = y * 255, np.zeros((size, size), np.uint8), []
        for number, color in enumerate(rng.permutation(list(COLORS))[: rng.integers(1, 4)], start=1):
            cx, cy, radius = rng.uniform(0.2, 0.8), rng.uniform(0.3, 0.8), rng.uniform(0.1, 0.18)
            shape = str(rng.choice(["sphere", "cube"]))
            away = np.hypot(x - cx, y - cy) if shape == "sphere" else np.maximum(abs(x - cx), abs(y - cy))
            inside = away < radius
            light = 0.6 + 0.4 * (1 - (y - cy + radius) / (2 * radius))
            image[inside] = (np.array(COLORS[color]) * light[..., None])[inside]
            depth[inside], ids[inside] = cy * 255, number
            objects.append({"id": number, "color": color, "shape": shape, "x": float(cx), "y": float(cy)})
        segmentation = torch.from_numpy(ids)
        palette = torch.from_numpy(np.concatenate([np.zeros((1, 3)), rng.integers(60, 256, (3, 3))]).astype(np.uint8))
        pictures["rgb"].append(torch.from_numpy(image.clip(0, 255).astype(np.uint8)).permute(2, 0, 1).contiguous())
        pictures["depth"].append(torch.from_numpy(depth.clip(0, 255).astype(np.uint8)).expand(3, size, size))
        pictures["regions"].append(palette[segmentation.long()].permute(2, 0, 1).contiguous())
        pictures["contours"].append(contours(segmentation))
        segmentations.append(segmentation)
        metas.append({"objects": objects})
    return Scenes({k: torch.stack(v) for k, v in pictures.items()}, torch.stack(segmentations), metas)
