"""An export holds one weight at a time, and of that a copy of a piece: the largest weight decides, not the model."""

from __future__ import annotations

import json
import weakref

import pytest
import torch
from safetensors.torch import load_file

from megaunigame.checkpoint import export
from megaunigame.checkpoint.export import write_shards
from megaunigame.checkpoint.trained import with_adapter
from megaunigame.engine.live_bytes import LiveBytes
from megaunigame.storage import spooled_tensors

SHAPES = {"a": (40, 30), "b": (90, 50), "c": (7,), "d": (60, 50)}
LARGEST = 4 * 90 * 50
PIECE = 1024


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(spooled_tensors, "PIECE", PIECE)
    monkeypatch.setattr(export, "SHARD_BYTES", 7000)


def test_shards_hold_one_tensor_at_a_time(tmp_path):
    alive: set[str] = set()
    most = 0

    def read():
        nonlocal most
        for name, shape in SHAPES.items():
            value = torch.full(shape, float(len(name)))
            alive.add(name)
            weakref.finalize(value.untyped_storage(), alive.discard, name)
            most = max(most, len(alive))
            yield name, value
            del value

    with LiveBytes() as held:
        size = write_shards(read(), tmp_path, torch.bfloat16)
    assert size == 2 * sum(torch.Size(shape).numel() for shape in SHAPES.values())
    assert most == 1 and held.peak <= LARGEST + 2 * PIECE, (most, held.peak)
    where = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert where == {"a": where["a"], "b": where["b"], "c": where["d"], "d": where["d"]} and len(set(where.values())) == 3
    assert load_file(tmp_path / where["b"])["b"].shape == (90, 50)


def test_merged_adapters_take_two_copies_of_a_weight():
    weight, low, high = torch.randn(90, 50), torch.randn(4, 50), torch.randn(90, 4)
    before = weight.clone()
    with LiveBytes() as held:
        merged = with_adapter(weight, low, high, 0.3, None, "w")
    assert torch.equal(weight, before) and torch.equal(merged, weight + 0.3 * (high @ low))
    assert held.peak <= 2 * LARGEST
