import hashlib
import json
import os

import pytest
import torch
from safetensors import safe_open

from megaunigame.errors import CheckpointError
from megaunigame.storage.background import BackgroundWriting
from megaunigame.storage.json_files import read_object
from megaunigame.storage.pending import DTYPES, PendingFile, sha256_of
from megaunigame.storage.untrusted_json import DEEPEST, is_deeper_than, parse, read_within
from megaunigame.storage.whole_files import write_whole


def test_safetensors_reads_what_is_written(tmp_path):
    tensors = {str(dtype): torch.arange(n + 1, dtype=torch.float32).to(dtype) for n, dtype in enumerate(DTYPES)}
    tensors |= {"empty": torch.zeros(0), "number": torch.tensor(7.0), "matrix": torch.rand(3, 5)}
    file = PendingFile("a.safetensors", tensors, {"what": 'it "is"'})
    written = file.write(tmp_path)
    content = (tmp_path / "a.safetensors").read_bytes()
    assert (written.name, written.bytes) == ("a.safetensors", len(content))
    assert written.sha256 == hashlib.sha256(content).hexdigest() == sha256_of(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as opened:
        assert opened.metadata() == {"what": 'it "is"'} and set(opened.keys()) == set(tensors)
        for name, tensor in tensors.items():
            read = opened.get_tensor(name)
            assert read.dtype == tensor.dtype and torch.equal(read, tensor)
    assert file.bytes == sum(t.nbytes for t in tensors.values())


def test_equal_content_makes_equal_files_of_aligned_tensors(tmp_path):
    tensors = {"b": torch.zeros(3, dtype=torch.uint8), "c": torch.zeros(1), "a": torch.zeros(1, dtype=torch.int64)}
    hashes = {PendingFile("x", dict(part)).write(tmp_path).sha256 for part in (tensors.items(), reversed(tensors.items()))}
    assert len(hashes) == 1
    content = (tmp_path / "x").read_bytes()
    length = int.from_bytes(content[:8], "little")
    offsets = {name: entry["data_offsets"] for name, entry in json.loads(content[8 : 8 + length]).items()}
    assert offsets == {"a": [0, 8], "c": [8, 12], "b": [12, 15]} and length % 8 == 0


def test_plain_bytes(tmp_path):
    written = PendingFile("a.json", content=b"{}").write(tmp_path)
    assert (tmp_path / "a.json").read_bytes() == b"{}" and written.bytes == 2


def test_everything_is_flushed_before_it_is_named(tmp_path, monkeypatch):
    """And then the name: a power cut leaves the old file or the new one."""
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_ino))
    PendingFile("a", content=b"x").write(tmp_path)
    replace, named = os.replace, tmp_path / "deep" / "b.json"

    def replacing(fresh, target):
        assert os.fspath(fresh) != os.fspath(target), "a reader sees half of it"
        assert os.stat(fresh).st_ino in flushed, "named before its content is on the disk"
        replace(fresh, target)
        flushed.append(0)

    monkeypatch.setattr(os, "replace", replacing)
    write_whole(named, "äö")
    assert (tmp_path / "a").stat().st_ino in flushed
    assert named.parent.stat().st_ino in flushed[flushed.index(0) :], "the new name is not on the disk"
    assert named.read_text(encoding="utf-8") == "äö"
    assert [p.name for p in named.parent.iterdir()] == ["b.json"]


def test_the_names_of_the_files_of_a_rank_are_flushed_too(tmp_path, monkeypatch):
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_ino))
    writing = BackgroundWriting([PendingFile("a", content=b"x")], tmp_path / "new")
    writing.wait()
    assert writing.problem == "" and flushed == [path.stat().st_ino for path in (tmp_path / "new" / "a", tmp_path / "new")]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff{}", b"[" * 100_000, None])
def test_damage_of_a_small_file_is_named(tmp_path, content):
    path = tmp_path / "state.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state\.json is not the state of a run .*Delete it\.") as caught:
        read_object(path, "the state of a run", CheckpointError, "Delete it.")
    assert len(str(caught.value)) < 500
    path.write_text('{"a": 1}')
    assert read_object(path, "the state of a run", CheckpointError, "Delete it.") == {"a": 1}


def test_no_more_is_read_than_is_parsed(tmp_path):
    (tmp_path / "a.json").write_bytes(b"[" + b"1, " * 1000 + b"1]")
    assert len(read_within(tmp_path / "a.json", 100)) == 101
    with pytest.raises(ValueError, match="more than the 100 bytes"):
        parse(read_within(tmp_path / "a.json", 100), 100)


@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: {"a": inner}], ids=["lists", "objects"])
def test_the_deepest_value_that_is_read(wrap):
    value = 1
    for _ in range(DEEPEST):
        value = wrap(value)
    assert not is_deeper_than(value) and is_deeper_than(wrap(value))
