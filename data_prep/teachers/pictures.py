"""A sample's picture as a PIL image, for teachers outside PyTorch."""

from __future__ import annotations

from PIL import Image

from megaunigame.data.decode import Sample


def shrunk(sample: Sample, longest: int) -> Image.Image:
    """The picture, shrunk if its longer side has more than `longest` pixels. Raises ValueError without a picture."""
    if sample.image is None:
        raise ValueError(f"sample {sample.key!r} has no picture to look at")
    picture = Image.fromarray(sample.image.permute(1, 2, 0).numpy())
    scale = longest / max(picture.size)
    if scale >= 1:
        return picture
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
