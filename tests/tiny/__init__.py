"""Shapes of tiny random models, a JSON file for each family."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from megaunigame.models.shapes import read_shape


def tiny_config(family: str, tokenizer: Any, **changes: Any) -> Any:
    """The configuration in `family`.json for `tokenizer`; `changes` replace single entries of it at any depth."""
    shape = read_shape(Path(__file__).with_name(f"{family}.json"), changes)
    return import_module(f"megaunigame.models.{family}.folder").config_for(tokenizer, shape)
