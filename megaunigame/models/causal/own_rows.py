"""One row of a batch, as if it had been collated by itself."""

from __future__ import annotations

import dataclasses
from typing import Any

from megaunigame.models.text.sequences import MULTIPLE
from megaunigame.step.inputs import GenerateInputs, InputsT, take_rows

ALONG_SEQUENCE = ("tokens", "attention", "image_positions", "labels", "segments")
ALONG_IMAGES = ("images", "image_valid", "source_codes", "source_pixels")


def own_row(inputs: InputsT, row: int) -> InputsT:
    """The left padded row with the padding and the places for pictures that it has alone: a function of the row."""
    one = take_rows(inputs, slice(row, row + 1))
    length = int(one.attention.sum())
    width = -(-length // MULTIPLE) * MULTIPLE
    changes: dict[str, Any] = {name: _of(one, name)[:, -width:] for name in ALONG_SEQUENCE if _of(one, name) is not None}
    valid = _of(one, "image_valid")
    if valid is not None:
        pictures = max(1, int(valid.sum()))
        changes |= {name: _of(one, name)[:, :pictures] for name in ALONG_IMAGES if _of(one, name) is not None}
    if isinstance(one, GenerateInputs) and valid is not None and not bool(valid.any()):
        changes |= dict.fromkeys(ALONG_IMAGES)  # a request without a source has no pictures at all
        changes["source_coded"] = []
    return dataclasses.replace(one, **changes)


def _of(inputs: Any, name: str) -> Any:
    return getattr(inputs, name, None)
