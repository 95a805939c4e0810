"""BLIP3o-NEXT: a folder with all weights from a release and the file of its vision tokenizer.

A release may have no weights of the vision tokenizer TA-Tok, which is published alone (csuhan/TA-Tok, ta_tok.pth).
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megaunigame.errors import ModelError
from megaunigame.models.blip3o_next.keys import KEYS, TOKENIZER, UNUSED, translate
from megaunigame.models.blip3o_next.model import Blip3oNext
from megaunigame.models.weights.settings_files import copy_settings
from megaunigame.models.weights.tensor_files import TensorFiles
from megaunigame.storage.foreign_text import one_line


def add_commands(commands: Any) -> None:
    """Add `complete` to the subparsers of a command line; it sets `tensors`, which makes (name, tensor)."""
    complete: ArgumentParser = commands.add_parser("complete", help="a release and ta_tok.pth -> a model folder")
    complete.add_argument("--release", type=Path, required=True, help="folder of a release")
    complete.add_argument("--ta-tok", type=Path, required=True, help="file of the vision tokenizer")
    complete.set_defaults(tensors=_completed)


def _completed(options: Namespace) -> Any:
    folder = str(options.release)
    Blip3oNext.open_processor(folder, max_length=1)
    files = TensorFiles.of_folder(folder)
    KEYS.open(files, folder)
    used = [key for key in sorted(files.index) if translate(key) and not key.startswith(TOKENIZER)]
    tokenizer = read_tokenizer_file(options.ta_tok)
    copy_settings(options.release, options.out)
    return ((key, value) for keys in (((k, files.read(k)) for k in used), tokenizer.items()) for key, value in keys)


def read_tokenizer_file(file: Path) -> dict[str, Tensor]:
    """The weights of ta_tok.pth that are used, under their names in a release.

    Raises ModelError for another file, and for a tokenizer whose codes are not those of the largest cosine.
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        settings, state = content["model"]["args"], content["model"]["sd"]
        regularizer = settings["bottleneck"]["args"]["regularizer"]["args"]
    except Exception as error:  # readers raise different exceptions for a damaged file
        raise ModelError(f"{file} is not ta_tok.pth of csuhan/TA-Tok ({type(error).__name__}: {one_line(error)}).") from error
    if not regularizer.get("l2_normalized"):
        raise ModelError(f"{file}: l2_normalized is false; in the vision tokenizer of BLIP3o-NEXT it is true.")
    named = {TOKENIZER + name: value for name, value in state.items()}
    return {key: value for key, value in named.items() if not UNUSED.fullmatch(key)}
