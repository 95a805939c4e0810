"""Sizes of pictures, numbers of masks, the spread of depth and stored codes over some samples, as lines of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from megaunigame.data.decode import DEPTH, SEGMENTATION, Sample, decode_sample
from megaunigame.data.shards.index import ShardIndex

SIDES = (0, 64, 128, 256, 384, 512, 768, 1024, 2048)
"""Lower edges, in pixels, of the bars for the shorter side; the last is open."""
MASKS = (0, 1, 2, 3, 5, 9, 17, 33, 65, 129)
DEPTH_BARS = 8
"""Equal parts of 0..65535; the last is nearest."""
WIDTH = 40
"""Characters of the longest bar."""


@dataclass
class PictureStatistics:
    """Counts over the pictures and targets of the samples given to `add`."""

    samples: int = 0
    shorter_sides: list[int] = field(default_factory=list)
    masks: list[int] = field(default_factory=list)
    """Number of different ids of each segmentation, without 0."""
    depth: np.ndarray = field(default_factory=lambda: np.zeros(DEPTH_BARS))
    """(DEPTH_BARS,) sum over depth maps of the fraction of pixels in each part."""
    depth_maps: int = 0
    constant_depth: int = 0
    """Depth maps with one value everywhere."""
    coded: Counter[str] = field(default_factory=Counter)
    """Samples with codes, by tokenizer and by what they were made for."""

    def add(self, sample: Sample) -> None:
        self.samples += 1
        if sample.image is not None:
            self.shorter_sides.append(min(sample.image.shape[1:]))
        if sample.codes is not None:
            self.coded[f"tokenizer {sample.codes.tokenizer[:12]}..., {sample.codes.made_for}"] += 1
        ids, nearness = sample.picture(SEGMENTATION), sample.picture(DEPTH)
        if ids is not None:
            self.masks.append(int(np.count_nonzero(np.unique(ids.numpy()))))
        if nearness is not None:
            depth = nearness.numpy()
            self.depth += np.bincount(depth.ravel() * DEPTH_BARS // 65536, minlength=DEPTH_BARS) / depth.size
            self.depth_maps += 1
            self.constant_depth += bool(depth.min() == depth.max())

    def lines(self) -> Iterator[str]:
        """The histograms, ready to print; none for what no sample has."""
        if self.shorter_sides:
            yield from histogram("shorter side of the picture (pixels)", *_binned(self.shorter_sides, SIDES))
        if self.masks:
            yield from histogram("masks per segmentation", *_binned(self.masks, MASKS))
        if self.depth_maps:
            labels = [f"{k / DEPTH_BARS:.3f}-{(k + 1) / DEPTH_BARS:.3f}" for k in range(DEPTH_BARS)]
            shares = (100 * self.depth / self.depth_maps).tolist()
            title = f"depth (% of pixels, 1 = nearest); {self.constant_depth} of {self.depth_maps} maps are constant"
            yield from histogram(title, labels, shares)
        yield from (f"codes of {samples} samples: {about}" for about, samples in self.coded.items())


def picture_statistics(index: ShardIndex, samples: int) -> PictureStatistics:
    """Statistics of up to this many samples, spread evenly. Raises DataError for one that cannot be decoded."""
    statistics = PictureStatistics()
    for position in spread(index, samples).tolist():
        statistics.add(sample_at(index, position))
    return statistics


def sample_at(index: ShardIndex, position: int) -> Sample:
    """Sample `position` of the whole data set, in the order of the shards."""
    return decode_sample(*fields_at(index, position))


def fields_at(index: ShardIndex, position: int) -> tuple[str, dict[str, bytes]]:
    """Key and raw fields of that sample."""
    ends = np.cumsum(index.sizes)
    shard = int(np.searchsorted(ends, position, side="right"))
    return index.read(shard, position - int(ends[shard] - index.sizes[shard]))


def spread(index: ShardIndex, samples: int) -> np.ndarray:
    """Up to this many positions, spread evenly over the data set."""
    return np.unique(np.linspace(0, index.samples - 1, samples).astype(np.int64))


def histogram(title: str, labels: Sequence[str], counts: Sequence[float]) -> Iterator[str]:
    """Lines of a bar chart; empty bars at either end are left out."""
    filled = [k for k, count in enumerate(counts) if count]
    longest = max(counts)
    yield title
    for k in range(filled[0], filled[-1] + 1):
        shown = f"{counts[k]:.1f}" if isinstance(counts[k], float) else str(counts[k])
        yield f"{labels[k]:>13} {'█' * round(WIDTH * counts[k] / longest):<{WIDTH}} {shown}"


def _binned(values: Sequence[int], edges: Sequence[int]) -> tuple[list[str], list[int]]:
    """Label and count of every bar [edge, next edge); the last is open."""
    counts = np.bincount(np.searchsorted(edges, values, side="right") - 1, minlength=len(edges)).tolist()
    pairs = zip(edges[:-1], edges[1:], strict=True)
    closed = [str(low) if high == low + 1 else f"{low}-{high - 1}" for low, high in pairs]
    return [*closed, f"{edges[-1]} or more"], counts
