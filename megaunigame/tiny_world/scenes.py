"""The pictures and objects of a scenes folder, decoded once and kept in memory as bytes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megaunigame.data.decode import META_FIELD, SEGMENTATION, decode_sample
from megaunigame.data.shards.index import ShardIndex
from megaunigame.errors import DataError
from megaunigame.representations.depth import Depth
from megaunigame.representations.pixel import Pixel
from megaunigame.representations.segmentation import Segmentation

KINDS = ("rgb", "depth", "regions", "contours")


@dataclass
class Scenes:
    """N decoded scenes of side H = W."""

    pictures: dict[str, Tensor]
    """Kind of picture -> uint8 (N, 3, H, W)."""
    segmentation: Tensor
    """uint8 (N, H, W): id of the object at each pixel, 0 = background."""
    metas: list[dict]
    """The json of each sample: `objects`, `caption`, `conversations`."""

    def __len__(self) -> int:
        return len(self.metas)

    def batch(self, kind: str, index: Tensor) -> Tensor:
        """Pictures of one kind, float32 (B, 3, H, W) in [-1, 1]."""
        return to_pixels(self.pictures[kind][index])


def to_pixels(picture: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1]."""
    return picture.float() / 127.5 - 1


def load_scenes(folder: Path, limit: int | None = None) -> Scenes:
    """Decode the first `limit` samples (all when None) of a scenes folder.

    Raises DataError when the folder holds no finished data set or a sample lacks image, depth or segmentation.
    """
    makers = {"rgb": Pixel(), "depth": Depth(), "regions": Segmentation()}
    pictures: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    segmentations: list[Tensor] = []
    metas: list[dict] = []
    for key, fields in itertools.islice(_raw(folder), limit):
        sample = decode_sample(key, fields)
        ids = sample.picture(SEGMENTATION)
        if ids is None:
            raise DataError(f"{folder}: sample {sample.key} has no segmentation; make it with data_prep scenes.")
        for kind, maker in makers.items():
            picture = maker.picture(sample)
            if picture is None:
                raise DataError(
                    f"{folder}: sample {sample.key} gives no {kind} picture; make the scenes with data_prep scenes."
                )
            pictures[kind].append(picture)
        pictures["contours"].append(contours(ids))
        segmentations.append(ids)
        metas.append(sample.meta)
    # Decoders return views of (H, W, 3) arrays; convolutions over such strides are several times slower.
    stacked = {kind: torch.stack(stack).contiguous() for kind, stack in pictures.items()}
    return Scenes(stacked, torch.stack(segmentations), metas)


def read_metas(folder: Path) -> Iterator[dict]:
    """The json of every sample of a folder of shards; no picture is decoded."""
    for key, fields in _raw(folder):
        yield decode_sample(key, {META_FIELD: fields[META_FIELD]}).meta


def _raw(folder: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    shards = ShardIndex.open(folder)
    for shard, samples in enumerate(shards.sizes):
        for i in range(samples):
            yield shards.read(shard, i)


def contours(segmentation: Tensor) -> Tensor:
    """Borders between objects, and between objects and background: white lines on black, uint8 (3, H, W)."""
    edge = torch.zeros_like(segmentation, dtype=torch.bool)
    edge[:, 1:] |= segmentation[:, 1:] != segmentation[:, :-1]
    edge[1:, :] |= segmentation[1:, :] != segmentation[:-1, :]
    return (edge.to(torch.uint8) * 255).expand(3, *segmentation.shape).contiguous()
