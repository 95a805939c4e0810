"""OpenUni: a folder from published parts, and weights under the official keys.

Sizes: b (InternVL3-1B, SANA-0.6B), l (InternVL3-2B, SANA-1.6B), 38b (InternVL3-38B, SANA1.5-4.8B). Without --openuni, meta
queries, connector and projector are random. The tokenizer comes from InternVL's folder.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from megaunigame.models.openuni.assembling import assemble
from megaunigame.models.openuni.keys import official_weights
from megaunigame.models.openuni.model import OpenUni
from megaunigame.models.openuni.sizes import SIZES
from megaunigame.models.weights.settings_files import copy_settings, read_tokenizer


def add_commands(commands: Any) -> None:
    """Add `assemble` and `official` to the subparsers of a command line; each sets `tensors`, which makes (name, tensor)."""
    parts: ArgumentParser = commands.add_parser("assemble", help="published parts -> a model folder")
    parts.add_argument("--size", choices=list(SIZES), required=True)
    parts.add_argument("--image-size", type=int, default=512, help="side of generated pictures (default 512)")
    for name, what in (("internvl", "InternVL3"), ("transformer", "SANA, diffusers"), ("autoencoder", "DC-AE, diffusers")):
        parts.add_argument(f"--{name}", type=Path, required=True, help=f"folder of {what}")
    parts.add_argument("--openuni", type=Path, help="file with official keys; its weights replace the random ones")
    parts.add_argument("--seed", type=int, default=0, help="of the random parts without --openuni")
    parts.set_defaults(tensors=_assembled)
    official: ArgumentParser = commands.add_parser("official", help="a model folder -> weights under the official keys")
    official.add_argument("--model", type=Path, required=True)
    official.set_defaults(tensors=_official)


def _assembled(options: Namespace) -> Any:
    config = SIZES[options.size](options.image_size)
    read_tokenizer(options.internvl)
    weights = assemble(config, options.internvl, options.transformer, options.autoencoder, options.openuni, options.seed)
    copy_settings(options.internvl, options.out)
    config.write(options.out)
    return ((name, weights.read(name)) for name in sorted(weights.names()))


def _official(options: Namespace) -> Any:
    return official_weights(OpenUni.weights(str(options.model)), OpenUni.frozen_weights(str(options.model)))
