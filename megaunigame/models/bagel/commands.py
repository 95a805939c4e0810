"""BAGEL: weights under the official keys.

`official` writes those of ema.safetensors with the position tables, `autoencoder` those of ae.safetensors. A file of several is
written as shards with an index; the official code reads one file, so join them, or read the index.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from megaunigame.models.bagel.keys import official_autoencoder, official_weights
from megaunigame.models.bagel.model import Bagel


def add_commands(commands: Any) -> None:
    """Add `official` and `autoencoder` to the subparsers of a command line; each sets `tensors`, which makes (name, tensor)."""
    for name, what, tensors in (
        ("official", "a model folder -> the weights of ema.safetensors", _official),
        ("autoencoder", "a model folder -> the weights of ae.safetensors", _autoencoder),
    ):
        parser: ArgumentParser = commands.add_parser(name, help=what)
        parser.add_argument("--model", type=Path, required=True)
        parser.set_defaults(tensors=tensors)


def _official(options: Namespace) -> Any:
    path = str(options.model)
    return official_weights(Bagel.configuration(path), Bagel.weights(path))


def _autoencoder(options: Namespace) -> Any:
    return official_autoencoder(Bagel.frozen_weights(str(options.model)))
