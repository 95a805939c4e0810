"""Harmon: a folder from published parts, and weights under the official keys.

Sizes: 0.5b, 1.5b. --harmon is a file such as harmon_1.5b.pth, --autoencoder is kl16.ckpt, both of wusize/harmon; --tokenizer is
a folder with tokenizer.json of the language model, Qwen2.5-0.5B-Instruct or -1.5B-Instruct.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from megaunigame.errors import ModelError
from megaunigame.models.harmon.folder import config_for
from megaunigame.models.harmon.keys import AUTOENCODER, KEYS, UNUSED, official_weights
from megaunigame.models.harmon.model import Harmon
from megaunigame.models.harmon.parts import autoencoder, trained_parts
from megaunigame.models.harmon.processor import TOKENIZER_HINT
from megaunigame.models.harmon.sizes import FILES
from megaunigame.models.shapes import read_shape
from megaunigame.models.weights.loading import check_names, check_shapes
from megaunigame.models.weights.renamed import RenamedWeights, StoredTensor
from megaunigame.models.weights.settings_files import copy_settings, read_tokenizer
from megaunigame.models.weights.tensor_files import TensorFiles


def add_commands(commands: Any) -> None:
    """Add `assemble` and `official` to the subparsers of a command line; each sets `tensors`, which makes (name, tensor)."""
    parts: ArgumentParser = commands.add_parser("assemble", help="published parts -> a model folder")
    parts.add_argument("--size", choices=list(FILES), required=True)
    parts.add_argument("--image-size", type=int, default=512, help="side of pictures (default 512)")
    parts.add_argument("--harmon", type=Path, required=True, help="file with official keys")
    parts.add_argument("--autoencoder", type=Path, required=True, help="kl16.ckpt")
    parts.add_argument("--tokenizer", type=Path, required=True, help="folder of Qwen2.5's tokenizer")
    parts.set_defaults(tensors=_assembled)
    official: ArgumentParser = commands.add_parser("official", help="a model folder -> weights under the official keys")
    official.add_argument("--model", type=Path, required=True)
    official.set_defaults(tensors=_official)


def read_parts(harmon: Path, kl16: Path) -> tuple[RenamedWeights, RenamedWeights]:
    """(weights of the model, weights of the autoencoder) of published files; the latter with `vae.` in front of its names.

    Raises ModelError for the files of another model.
    """
    model, inner = KEYS.open(TensorFiles([harmon]), harmon)
    if inner.names():
        raise ModelError(f"{harmon} contains an autoencoder ({AUTOENCODER}{min(inner.names())}). Give a file without one.")
    files = TensorFiles([kl16])
    used = {key: StoredTensor(key) for key in files.index if not UNUSED.fullmatch(AUTOENCODER + key)}
    return model, RenamedWeights(files, used).prefixed(AUTOENCODER)


def _assembled(options: Namespace) -> Any:
    tokenizer = read_tokenizer(options.tokenizer, TOKENIZER_HINT)
    sides = {"image_size": options.image_size, "source_size": options.image_size}
    config = config_for(tokenizer, read_shape(FILES[options.size], sides))
    parts = read_parts(options.harmon, options.autoencoder)
    with torch.device("meta"):
        modules = nn.ModuleDict(trained_parts(config)), nn.ModuleDict({AUTOENCODER.removesuffix("."): autoencoder(config)})
    for module, weights, file in zip(modules, parts, (options.harmon, options.autoencoder), strict=True):
        expected = {name: tensor.shape for name, tensor in module.state_dict().items()}
        check_names(expected, weights.names(), str(file))
        check_shapes(expected, {name: weights.shape(name) for name in expected}, str(file))
    copy_settings(options.tokenizer, options.out, without=("config.json", "generation_config.json"))
    config.write(options.out)
    return ((name, weights.read(name)) for weights in parts for name in sorted(weights.names()))


def _official(options: Namespace) -> Any:
    return official_weights(Harmon.weights(str(options.model)))
