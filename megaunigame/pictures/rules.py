"""How pictures are read: what shows through transparent ones, and how many pixels one may have."""

from __future__ import annotations

import re
from dataclasses import dataclass

from megaunigame.errors import ConfigError

WHITE = "white"
GROUNDS = {WHITE: (255, 255, 255), "black": (0, 0, 0), "gray": (128, 128, 128)}
MAX_PIXELS = 64_000_000
"""8000 x 8000, above what most cameras and scanners make. Reading one takes 0.2 GB (JPEG), 0.6 GB (PNG, TIFF) or up to 1.5 GB
(WebP with transparency)."""


class PictureError(Exception):
    """A picture that is not read; the text is the reason, such as "damaged image"."""


@dataclass(frozen=True)
class PictureRules:
    """The same for every picture of a data set."""

    ground: tuple[int, int, int] = GROUNDS[WHITE]
    """RGB in 0..255, seen where a picture is transparent."""
    max_pixels: int = MAX_PIXELS
    """Width x height of the largest picture that is decoded. Checked on the header, before memory is taken."""

    def check_size(self, width: int, height: int) -> None:
        """Raises PictureError for a picture with too many pixels, or none."""
        if width * height > self.max_pixels:
            raise PictureError(
                f"{width} x {height} = {width * height:,} pixels, more than the {self.max_pixels:,} that max_pixels allows"
            )
        if width < 1 or height < 1:
            raise PictureError(f"damaged image: {width} x {height} pixels")


DEFAULT_RULES = PictureRules()


def ground_from(key: str, text: str) -> tuple[int, int, int]:
    """The color of a name in `GROUNDS`, or of #rrggbb. Raises ConfigError, naming `key`, for anything else."""
    if text in GROUNDS:
        return GROUNDS[text]
    if not re.fullmatch("#[0-9a-fA-F]{6}", text):
        raise ConfigError(
            f"{key} must be {', '.join(GROUNDS)} or a color such as '#f0f0f0' (with quotes: # begins a comment in YAML and in "
            f"a shell); got {text!r}."
        )
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue
