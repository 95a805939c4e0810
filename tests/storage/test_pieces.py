"""Ranges of stored tensors: which bytes of which file, however few of them a call of the system brings."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import save_file

from megaunigame.errors import ModelError
from megaunigame.storage import pieces
from megaunigame.storage.pieces import Piece, PieceReader, data_offsets, fingerprint, part


def test_parts_of_pieces_that_lie_apart():
    """Three pieces of one tensor, in two number types."""
    whole = [
        Piece("a", 100, torch.float32, 4),
        Piece("b", 40, torch.float16, 3),
        Piece("a", 8, torch.float32, 5),
    ]
    assert part(whole, range(0, 12)) == whole
    assert part(whole, range(2, 9)) == [
        Piece("a", 108, torch.float32, 2),
        Piece("b", 40, torch.float16, 3),
        Piece("a", 8, torch.float32, 2),
    ]
    assert part(whole, range(5, 6)) == [Piece("b", 42, torch.float16, 1)]
    assert part(whole, range(4, 4)) == [] and part(whole, range(12, 20)) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["as stored", "converted"])
def test_a_file_system_that_brings_few_bytes_at_a_time(tmp_path, monkeypatch, dtype):
    """As one does that is mounted over a network, or is interrupted. The next call goes on where the last ended."""
    stored = torch.arange(40.0).view(5, 8)
    save_file({"other": torch.ones(3), "w": stored}, tmp_path / "w")
    lies = data_offsets(tmp_path / "w")["w"]
    asked, read = [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, memory, at: asked.append(at) or read(file, [memory[0][:7]], at))
    monkeypatch.setattr(pieces, "BUFFER", 48)
    target = torch.full((22,), torch.nan, dtype=dtype)
    with PieceReader() as reader:
        reader.read_into(target, part([Piece(str(tmp_path / "w"), lies.start, torch.float32, 40)], range(11, 33)))
        assert torch.equal(target, stored.flatten()[11:33].to(dtype)) and reader.bytes == 4 * 22
    assert len(asked) > 12 and asked == sorted(asked)


def test_a_file_that_ends_too_early_is_named(tmp_path):
    (tmp_path / "w").write_bytes(bytes(10))
    with PieceReader() as reader, pytest.raises(ModelError, match="w ends before its byte 12. It is not complete"):
        reader.read_into(torch.empty(2), [Piece(str(tmp_path / "w"), 4, torch.float32, 2)])


def test_a_fingerprint_is_of_header_and_size(tmp_path):
    for name, key in (("a", "w"), ("b", "w"), ("c", "v")):
        save_file({key: torch.ones(3)}, tmp_path / name)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b") != fingerprint(tmp_path / "c")
    with open(tmp_path / "b", "ab") as file:
        file.write(b"\0")
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b"), "a file that grew has another size"
