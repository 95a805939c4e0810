"""Adapters of a large model stay whole on every rank between updates: no pass gathers them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from megaunigame.models.base import UnifiedModel
from megaunigame.registry import find

RANK = 16


@pytest.fixture(scope="module")
def layer(tmp_path_factory) -> tuple[list[tuple[int, int]], int]:
    """(outputs, inputs) of the linear layers of a layer of Emu3.5 34B, and how many layers it has."""
    family, folder = find("models", "emu3_5", UnifiedModel), tmp_path_factory.mktemp("34b")
    family.write_size("34b", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with torch.device("meta"):
        parts = nn.ModuleDict(family.trained_parts(family.configuration(str(folder))))
    linear = [m for name, m in parts.named_modules() if isinstance(m, nn.Linear) and ".layers.0." in name]
    return [(m.out_features, m.in_features) for m in linear], config["num_hidden_layers"]


@pytest.mark.parametrize("file", ["zero3_30b", "zero3_hpz"])
def test_adapters_of_34_billion_are_below_the_threshold(file, layer):
    shapes, layers = layer
    adapters = [RANK * side for shape in shapes for side in shape]
    assert len(adapters) == 14 and max(adapters) == RANK * 25600 and layers * sum(adapters) == 134_217_728
    knobs = json.loads(Path(f"ds_configs/{file}.json").read_text())["zero_optimization"]
    smallest = min(rows * columns for rows, columns in shapes)
    assert max(adapters) <= knobs["stage3_param_persistence_threshold"] < smallest, "adapters, and no matrix of the base"
    assert "stage3_model_persistence_threshold" not in knobs, "how many elements may stay whole: all of them"
