"""A safetensors file that is written tensor by tensor has the bytes of one that is written at once."""

from __future__ import annotations

import torch
from safetensors.torch import load_file, save_file

from megaunigame.engine.live_bytes import LiveBytes
from megaunigame.storage import spooled_tensors
from megaunigame.storage.spooled_tensors import SpooledTensors

TENSORS = {
    "b": torch.arange(35.0).view(5, 7),
    "ä": torch.randn(6, 4).to(torch.bfloat16),
    "half": torch.randn(3).half(),
    "double": torch.randn(2, 3).double(),
    "whole": torch.arange(9),
    "small": torch.arange(4, dtype=torch.int32),
    "byte": torch.arange(5, dtype=torch.uint8),
    "flag": torch.tensor([True, False]),
    "one": torch.tensor(3.0),
    "none": torch.zeros(0, 3),
}


def test_the_bytes_are_those_of_safetensors(tmp_path, monkeypatch):
    """In pieces of a few elements; also of a tensor that is not contiguous."""
    monkeypatch.setattr(spooled_tensors, "PIECE", 24)
    save_file(TENSORS, tmp_path / "theirs", {"format": "pt"})
    spool = SpooledTensors(tmp_path)
    for name, value in TENSORS.items():
        spool.add(name, value.t().contiguous().t() if name == "b" else value, value.dtype)
    assert len(list(tmp_path.iterdir())) == 1, "a killed export leaves nothing"
    spool.write(tmp_path / "ours")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_tensors_wait_in_the_folder_that_has_room_for_them(tmp_path, monkeypatch):
    """Not in /tmp, which may be memory."""
    folders, make = [], spooled_tensors.tempfile.TemporaryFile
    monkeypatch.setattr(spooled_tensors.tempfile, "TemporaryFile", lambda dir=None: folders.append(dir) or make(dir=dir))
    spool = SpooledTensors(tmp_path)
    spool.add("a", TENSORS["b"], torch.float32)
    assert folders == [tmp_path] and len(spool) == 1 and spool.names() == ["a"]


def test_a_tensor_is_converted_as_at_once_and_never_copied_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(spooled_tensors, "PIECE", 4096)
    given = torch.randn(300, 70)
    spool = SpooledTensors(tmp_path)
    with LiveBytes() as held:
        spool.add("w", given, torch.bfloat16)
        spool.add("turned", given.t(), torch.bfloat16)
    assert 0 < held.peak <= 2 * 4096 and spool.bytes == 2 * 2 * given.numel()
    spool.write(tmp_path / "ours")
    written = load_file(tmp_path / "ours")
    assert torch.equal(written["w"], given.to(torch.bfloat16)) and torch.equal(written["turned"], given.t().to(torch.bfloat16))
