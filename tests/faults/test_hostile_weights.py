"""Hostile files of weights: indices, pickles, PyTorch files of other forms, headers of safetensors. Each is refused by name."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch

from megaunigame.data.decode import decode_sample
from megaunigame.data.shards.index import ShardIndex
from megaunigame.errors import DataError, ModelError
from megaunigame.models.weights.tensor_files import TensorFiles
from tests.data.shard_files import sample_fields, write_tar

pytestmark = pytest.mark.timeout(60)


@pytest.mark.fault(
    "an index of weights names a file outside the model folder", does="refuses it, naming the value", lost="nothing"
)
@pytest.mark.parametrize("name", ["../other.safetensors", "/x.safetensors", 5, "a/b.safetensors"])
def test_an_index_of_weights_stays_in_the_folder(tmp_path, name):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(ModelError, match=r"index\.json names the file .*not a file name in its folder"):
        TensorFiles.of_folder(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": []}', "{}", "[" * 100_000])
def test_a_damaged_index_of_weights(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json"):
        TensorFiles.of_folder(tmp_path)


class Runs:
    """Its pickle calls a function."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.fault("a pickle that runs code, in a model folder (5f)", does="refuses it; nothing runs", lost="nothing")
def test_a_malicious_pickle(tmp_path):
    torch.save({"w": torch.zeros(2), "x": Runs(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError) as refused:
        _ = TensorFiles.of_folder(tmp_path).index
    assert not (tmp_path / "ran").exists()
    said = str(refused.value)
    assert "pytorch_model.bin holds Python objects other than tensors (posix.mkdir)" in said and "safetensors" in said
    assert not any(word in said for word in ("weights_only", "Copy it again", "Re-running"))


ODD_ENTRIES = {
    "a list": [1, 2],
    "a dict": {"w": torch.zeros(2)},
    "a int": 3,
    "a NoneType": None,
    "a str": "x",
    "a tensor of the layout torch.sparse_coo": torch.eye(2).to_sparse(),
    "a tensor of the layout torch.sparse_csr": torch.eye(2).to_sparse_csr(),
    "a tensor without values": torch.zeros(2, device="meta"),
    "a quantized tensor": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    "a nested tensor": torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
    "a NestedTensor": torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged),
}


@pytest.mark.fault(
    "a PyTorch file whose entries are not tensors, or sparse, quantized, nested or empty ones",
    does="refuses it, naming file and entry",
    lost="nothing",
)
@pytest.mark.parametrize("kind", ODD_ENTRIES)
def test_what_is_not_a_tensor_in_a_pytorch_file(tmp_path, kind):
    torch.save({"w": torch.zeros(2), "x": ODD_ENTRIES[kind]}, tmp_path / "pytorch_model.bin")
    files = TensorFiles.of_folder(tmp_path)
    assert files.shape("w") == (2,)
    for read in (files.read, files.shape, lambda key: files.read(key, slice(0, 1))):
        with pytest.raises(ModelError, match=rf"pytorch_model\.bin: 'x' is {kind}.*, not a tensor of plain numbers"):
            read("x")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.zeros(2)], "holds a list, not tensors by their names"),
        (torch.zeros(2), "holds a Tensor, not tensors by their names"),
        (3, "holds a int, not"),
        (None, "holds a NoneType, not"),
        ({"state_dict": [torch.zeros(2)]}, "holds a list, not"),
        ({"state_dict": torch.zeros(2)}, "holds a Tensor, not"),
        ({1: torch.zeros(2)}, "has 1 in place of the name of a tensor"),
        ({None: torch.zeros(2)}, "has None in place of"),
        ({("a", "b"): torch.zeros(2)}, r"has \('a', 'b'\) in place of"),
        ({"state_dict": {b"w\x1b": torch.zeros(2)}}, r"has b'w\\x1b' in place of"),
    ],
)
def test_another_form_of_a_pytorch_file(tmp_path, content, words):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=rf"pytorch_model\.bin {words}"):
        _ = TensorFiles.of_folder(tmp_path).index


def test_parameters_in_a_pytorch_file_are_read_as_tensors(tmp_path):
    torch.save({"state_dict": {"w": torch.nn.Parameter(torch.ones(2, 3))}}, tmp_path / "pytorch_model.bin")
    files = TensorFiles.of_folder(tmp_path)
    for tensor in (files.read("w"), files.read("w", slice(0, 1))):
        assert type(tensor) is torch.Tensor and not tensor.requires_grad


@pytest.mark.fault("a pickle among the data (5g)", does="never unpickles: it is a bad sample", lost="the sample")
@pytest.mark.parametrize("field", ["json", "png", "depth.png", "seg.png", "codes.bin"])
def test_a_pickle_in_a_shard(tmp_path, field):
    import pickle

    write_tar(
        tmp_path / "a.tar",
        [*((f"a.{n}", d) for n, d in {**sample_fields(0), field: pickle.dumps(Runs(tmp_path / "ran"))}.items())],
    )
    with pytest.raises(DataError, match="Sample 'a'"):
        decode_sample(*ShardIndex.open(tmp_path / "a.tar").read(0, 0)).decoded()
    assert not (tmp_path / "ran").exists()


def safetensors_file(head: object, data: bytes = bytes(16), size: int | None = None) -> bytes:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def entry(begin: int, end: int, shape: list, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.fault("safetensors with a hostile header: size, overlaps, gaps, shapes", does="refuses it by name", lost="nothing")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(7),
        safetensors_file({"a": entry(0, 16, [4])}, size=2**63 - 1),
        safetensors_file({"a": entry(0, 16, [4])}, size=2**64 - 1),
        safetensors_file({"a": entry(0, 16, [4]), "b": entry(8, 16, [2])}),
        safetensors_file({"a": entry(0, 4, [1]), "b": entry(8, 16, [2])}),
        safetensors_file({"a": entry(0, 16, [2**40, 2**40])}),
        safetensors_file({"a": entry(16, 0, [4])}),
        safetensors_file({"a": entry(0, 160, [40])}),
        safetensors_file({"a": entry(0, 16, [4], "X99")}),
        safetensors_file({"a": entry(-16, 0, [4])}),
        safetensors_file(b"[" * 100_000),
        safetensors_file(b'{"a": \xff}'),
    ],
)
def test_headers_of_safetensors(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read as a checkpoint"):
        _ = TensorFiles.of_folder(tmp_path).index


def test_safetensors_are_preferred_to_pickles(tmp_path):
    safetensors.torch.save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    torch.save({"w": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert TensorFiles.of_folder(tmp_path).read("w").item() == 1


def test_a_tensor_that_is_in_two_shards(tmp_path):
    """Which of them would be read depends on the order of the files."""
    safetensors.torch.save_file({"w": torch.ones(1)}, tmp_path / "a.safetensors")
    safetensors.torch.save_file({"w": torch.zeros(1), "x": torch.zeros(1)}, tmp_path / "b.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"w": "a.safetensors", "x": "b.safetensors"}}')
    with pytest.raises(ModelError, match=r"w is in .*a\.safetensors and in .*b\.safetensors"):
        _ = TensorFiles.of_folder(tmp_path).index
    assert sorted(TensorFiles.of_folder(tmp_path).without("w").index) == ["x"]
