"""The examples of docs/extending.md, where a user would put them: each file on the path of the package it belongs to."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig

from megaunigame.data import decode
from megaunigame.models.base import UnifiedModel
from megaunigame.models.text.small_tokenizer import small_tokenizer
from megaunigame.registry import find
from tests.models.shared import built

HERE = Path(__file__).parent / "examples"
ROOMS = ("adversary", "data.sources", "evaluation.suites", "models", "objectives", "representations")


@pytest.fixture(scope="module")
def examples():
    """Afterwards the library is as it was."""
    loaded = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "DECODERS", decode.DECODERS | {})
        for room in ROOMS:
            package = importlib.import_module(f"megaunigame.{room}")
            patch.setattr(package, "__path__", [*package.__path__, str(HERE.joinpath(*room.split(".")))])
        yield HERE
    for name in set(sys.modules) - loaded:
        if str(HERE) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def write_files(folder: Path, samples: dict[str, dict[str, bytes]]) -> None:
    """Samples by key, each field a file."""
    folder.mkdir()
    for key, fields in samples.items():
        for field, data in fields.items():
            (folder / f"{key}.{field}").write_bytes(data)


def write_patches(folder: Path) -> Path:
    """A model folder of the example's family with random weights."""
    special = ["<pad>", "<eos>", "<img>", "<patch>", "</img>"]
    tokenizer = small_tokenizer(["what is this ? a ball >"], 300, special, pad="<pad>", bos=None, eos="<eos>")
    tokenizer.save_pretrained(folder)
    widths = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaConfig(vocab_size=len(tokenizer), **widths).save_pretrained(folder)
    torch.manual_seed(0)
    model = built(find("models", "patches", UnifiedModel), folder, max_length=64)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder
