"""An example as the fields of a shard: picture, depth, segmentation and json."""

from __future__ import annotations

import io
import json
import zlib

import numpy as np
from PIL import Image

from .render import color, geometry_of, instance_ids, inverse_depth
from .splits import MIXED, Example, example
from .world import RADII

SMALLEST = 64

_PALETTE = bytes((0, 0, 0, 230, 159, 0, 86, 180, 233, 0, 158, 115, 240, 228, 66)).ljust(768, b"\0")
"""For picture viewers only; ids are drawn at random, so the colors mean nothing. All 256 entries are written: with
fewer than 17 the PNG gets 4 bits per pixel, which some decoders (torchvision's) misread."""


def sample(seed: int, split: str, index: int, size: int, questions: str = MIXED) -> dict[str, bytes | str]:
    """Sample `index` as a WebDataset dictionary: `__key__` and the bytes of each field. `questions`: as in `example`."""
    shown = example(seed, split, index, questions)
    scene = shown.scene
    geometry = geometry_of(scene, size)
    return {
        "__key__": f"{split}-{index:08d}",
        # String matching finds nothing in pixel noise: Huffman codes alone are faster and smaller.
        "png": _png(Image.fromarray(color(scene, size)), compress_type=zlib.Z_HUFFMAN_ONLY),
        "depth.png": _png(Image.fromarray(inverse_depth(geometry))),
        "seg.png": _png(_indexed(instance_ids(scene.things, geometry))),
        "json": json.dumps(_record(shown, geometry.visible() / size**2)).encode(),
    }


def _record(shown: Example, visible: np.ndarray) -> dict[str, object]:
    scene = shown.scene
    conversations = []
    for _, question, answer in shown.turns:
        conversations.append({"from": "human", "value": question})
        conversations.append({"from": "gpt", "value": answer})
    conversations[0]["value"] = "<image>\n" + conversations[0]["value"]
    objects = []
    for thing, fraction in zip(scene.things, visible.tolist(), strict=True):
        u, v, depth = scene.camera.project(thing.center)
        objects.append(
            {
                "id": thing.mask_id,
                "shape": thing.shape,
                "color": thing.color,
                "size": thing.size,
                "material": thing.material,
                "radius": RADII[thing.size],
                "x": round((u + 1) / 2, 4),
                "y": round((1 - v) / 2, 4),
                "depth": round(depth, 4),
                "visible": round(fraction, 5),
            }
        )
    return {
        "conversations": conversations,
        "kinds": [kind for kind, _, _ in shown.turns],
        "caption": shown.caption,
        "objects": objects,
        **shown.extra,
    }


def _indexed(ids: np.ndarray) -> Image.Image:
    image = Image.fromarray(ids)
    image.putpalette(_PALETTE)
    return image


def _png(image: Image.Image, **options: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "png", compress_level=1, **options)
    return out.getvalue()
