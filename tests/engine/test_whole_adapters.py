"""Adapters of a large model stay whole on every rank between updates: no pass gathers them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from megaunigame.models.base import UnifiedModel
from megaunigame.registry import find

RANK = 16


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> tuple[list[int], int]:
    """(elements of the adapters of one layer of Emu3.5 34B, its layers), all linear layers of the language model adapted."""
    family, folder = find("models", "emu3_5", UnifiedModel), tmp_path_factory.mktemp("34b")
    family.write_size("34b", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with torch.device("meta"):
        processor = family.open_processor(str(folder), max_length=64)
        model = family.build(str(folder), processor, attention="sdpa", gradient_checkpointing=False)
        model.add_lora(rank=RANK, alpha=2.0 * RANK, dropout=0.0, targets=[], seed=0)
    return [p.numel() for name, p in model.named_parameters() if "lora_" in name], config["num_hidden_layers"]


@pytest.mark.parametrize("file", ["zero3_30b", "zero3_hpz"])
def test_adapters_of_34_billion_are_below_the_threshold(file, adapters):
    elements, layers = adapters
    assert len(elements) == 14 and max(elements) == RANK * 25600 and layers * sum(elements) == 131_072_000
    knobs = json.loads(Path(f"ds_configs/{file}.json").read_text())["zero_optimization"]
    threshold = knobs["stage3_param_persistence_threshold"]
    assert max(elements) <= threshold < 5120 * 1024, "no adapter is partitioned, every matrix of the base is"
    assert "stage3_model_persistence_threshold" not in knobs, "how many elements may stay whole: all of them"
