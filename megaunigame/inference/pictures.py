"""Pictures that a user gives: files, Pillow images, arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from megaunigame.errors import DataError
from megaunigame.pictures.pillow import rgb_of
from megaunigame.pictures.reading import read_picture
from megaunigame.pictures.rules import DEFAULT_RULES, PictureError
from megaunigame.storage.regular_files import read_regular

Picture = Image.Image | str | Path | np.ndarray | Tensor
"""A path; an image of Pillow; a uint8 array (h, w), (h, w, 3) or (h, w, 4); a uint8 tensor (3, h, w)."""
LARGEST_PICTURE = 512 * 1024**2
"""Bytes of a file. One of MAX_PIXELS, four numbers of 16 bits each and not compressed, fits."""
LEGAL = "Give a path, a Pillow image, a uint8 array (h, w, 3) or a uint8 tensor (3, h, w)."


def as_pixels(picture: Picture) -> Tensor:
    """uint8 (3, h, w), RGB: upright, its first frame, white where it is transparent.

    Raises DataError for what is not a picture, a file that is not there, is damaged or is too large.
    """
    if isinstance(picture, Tensor):
        if picture.dtype != torch.uint8 or picture.dim() != 3 or picture.shape[0] != 3 or not picture.numel():
            raise DataError(f"A picture is a tensor {tuple(picture.shape)} of {picture.dtype}. {LEGAL}")
        return picture.cpu()
    if isinstance(picture, str | Path):
        return _of_file(Path(picture))
    if isinstance(picture, np.ndarray):
        picture = _of_array(picture)
    if not isinstance(picture, Image.Image):
        raise DataError(f"A picture is a {type(picture).__name__}. {LEGAL}")
    try:
        shown = rgb_of(picture, DEFAULT_RULES)
    except PictureError as error:
        raise DataError(f"A picture cannot be used: {error}.") from error
    return torch.from_numpy(np.array(shown)).permute(2, 0, 1).contiguous()


def _of_file(path: Path) -> Tensor:
    try:
        content = read_regular(path, LARGEST_PICTURE)
    except OSError as error:
        raise DataError(f"The picture {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise DataError(f"The picture {path} cannot be read: {error}.") from error
    try:
        return read_picture(content, DEFAULT_RULES)
    except PictureError as error:
        raise DataError(f"The picture {path} cannot be used: {error}.") from error


def _of_array(array: np.ndarray) -> Image.Image:
    shape_fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not shape_fits or not array.size:
        raise DataError(f"A picture is an array {array.shape} of {array.dtype}. {LEGAL}")
    return Image.fromarray(np.ascontiguousarray(array))
