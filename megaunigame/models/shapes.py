"""Shapes of models as JSON, and a check used by several families."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megaunigame.errors import ModelError

GROUP_NORM_GROUPS = 32


def read_shape(file: Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The configuration in the JSON `file`, without tokenizer ids; `changes` replace single entries at any depth."""
    return _changed(json.loads(file.read_text()), changes or {})


def _changed(shape: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    inner = {key: _changed(shape[key], value) for key, value in changes.items() if isinstance(value, Mapping)}
    return {**shape, **changes, **inner}


def check_channels(base_channels: int) -> None:
    """Raise ModelError for a width of an image tokenizer that its norms cannot divide."""
    if base_channels % GROUP_NORM_GROUPS:
        raise ModelError(f"base_channels={base_channels} must be a multiple of {GROUP_NORM_GROUPS} (norm groups).")
