"""Tiny random models: their shapes are JSON files, one for each family."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from megaunigame.models.causal.model import CausalModel
from megaunigame.models.shapes import read_shape
from megaunigame.registry import find


class Tiny(NamedTuple):
    """A tiny model on disk: its family, its folder, and what was written there; `state` has all weights under our names."""

    family: type[CausalModel]
    path: Path
    tokenizer: Any
    config: Any
    state: dict[str, Tensor]

    def load(self, **options: Any) -> CausalModel:
        return self.family.load(self.path, **{"max_length": 160, **options})

    def processor(self, max_length: int = 160) -> Any:
        return self.family.open_processor(str(self.path), max_length=max_length)


def tiny_config(family: str, tokenizer: Any, **changes: Any) -> Any:
    """The configuration in `family`.json for `tokenizer`; `changes` replace single entries of it at any depth."""
    return import_module(f"megaunigame.models.{family}.folder").config_for(tokenizer, shape_of(family, changes))


def shape_of(family: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    return read_shape(Path(__file__).with_name(f"{family}.json"), changes)


def write_tiny(
    family: str,
    path: Path,
    texts: Iterable[str],
    vocabulary: int = 300,
    *,
    seed: int = 0,
    factor: Callable[[str], float] = lambda name: 1.0,
    settings: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Tiny:
    """A model of `family`.json with `changes`, and a tokenizer of `texts` of at most `vocabulary` tokens.

    `factor(name)`: on the random values of the matrix of that name. `settings`: arguments of the family's `write_folder`.
    """
    room = import_module(f"megaunigame.models.{family}.folder")
    given: dict[str, Any] = {}
    if "codes" in inspect.signature(room.train_tokenizer).parameters:  # codes are tokens
        sizes = shape_of(family, changes)["vq_config"]
        given["codes"] = sizes["codebook_size" if "codebook_size" in sizes else "num_embeddings"]
    tokenizer = room.train_tokenizer(texts, vocabulary, **given)
    config = tiny_config(family, tokenizer, **changes)
    random = room.random_state(config, seed)
    state = {name: value * factor(name) if value.dim() > 1 else value for name, value in random.items()}
    room.write_folder(path, config, state, tokenizer, **(settings or {}))
    return Tiny(find("models", family, CausalModel), path, tokenizer, config, state)
