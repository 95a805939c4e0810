"""`verify` passes what was written and finds what was changed."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import shutil
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.scenes.samples import sample
from data_prep.shard_writer import Job, Shard, ShardSample
from tests.data.shard_files import encoded
from tests.data_prep.stored import write_whole


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    assert main(["scenes", "--out", str(folder), "--count", "30", "--shard-size", "10", "--split", "ood"]) == 0
    return folder


@pytest.fixture
def folder(good: Path, tmp_path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "copy"))


def test_a_good_folder_passes_with_a_line_per_shard(folder, capsys):
    assert main(["verify", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"ood-00000{k}.tar: 10 samples, ok" for k in range(3)] + ["3 shards, 0 with faults"]


def test_a_flipped_byte_in_a_picture_is_found(folder, capsys):
    index = json.loads((folder / "ood-000001.idx.json").read_text())
    offset, size = index["samples"][4]["fields"]["png"]
    _patch(folder / "ood-000001.tar", offset, b"\0" * 8)
    assert main(["verify", str(folder)]) == 1
    assert "ood-000001.tar: FAULT: Sample 'ood-00000014'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (lambda f: (f / "ood-000001.tar").unlink(), "ood-000001.tar is missing"),
        (lambda f: (f / "ood-000001_stats.json").unlink(), "ood-000001_stats.json is missing"),
        (lambda f: _append(f / "ood-000001.tar", b"\0" * 512), "bytes long"),
        (lambda f: os.truncate(f / "ood-000001.tar", 9000), "is 9000 bytes long, dataset.json says"),
        (lambda f: _append(f / "ood-000001.idx.json", b" "), "is not the index that was written"),
        (lambda f: _patch(f / "ood-000001.tar", 0, b"x"), "FAULT"),
        (lambda f: shutil.copy(f / "ood-000000_stats.json", f / "ood-000001_stats.json"), "says"),
    ],
)
def test_tampered_shards_are_found(tamper, said, folder, capsys):
    tamper(folder)
    assert main(["verify", str(folder)]) == 1
    shown = capsys.readouterr().out
    assert said in shown
    assert "ood-000000.tar: 10 samples, ok" in shown and "3 shards, 1 with faults" in shown


def _scaled_depth(fields: ShardSample) -> None:
    depth = np.array(Image.open(io.BytesIO(bytes(fields["depth.png"])))) // 2
    fields["depth.png"] = encoded(depth)


def _eight_bits(fields: ShardSample) -> None:
    fields["depth.png"] = encoded(np.zeros((64, 64), dtype=np.uint8))


def _foreign_id(fields: ShardSample) -> None:
    fields["seg.png"] = encoded(np.full((64, 64), 9, dtype=np.uint8))


def _no_marker(fields: ShardSample) -> None:
    fields["json"] = bytes(fields["json"]).replace(b"<image>", b"")


def _kinds_short(fields: ShardSample) -> None:
    record = json.loads(fields["json"])
    fields["json"] = json.dumps(record | {"kinds": record["kinds"][:-1]}).encode()


def _colors_for_ids(fields: ShardSample) -> None:
    with Image.open(io.BytesIO(bytes(fields["seg.png"]))) as picture:
        fields["seg.png"] = encoded(np.array(picture.convert("RGB")))


def _palette_too_short(fields: ShardSample) -> None:
    """Ids kept, palette cut to one color; Pillow would not write such a file, so the chunks are put together by hand."""
    data = bytes(fields["seg.png"])
    at = data.index(b"PLTE") - 4
    length = int.from_bytes(data[at : at + 4], "big")
    chunk = b"PLTE" + bytes(3)
    short = (3).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    fields["seg.png"] = data[:at] + short + data[at + 12 + length :]


def _other_size(fields: ShardSample) -> None:
    fields["seg.png"] = encoded(np.zeros((32, 32), np.uint8), palette=256)
    fields["json"] = json.dumps({"caption": "words"}).encode()


def _cut_jpeg(fields: ShardSample) -> None:
    with Image.open(io.BytesIO(bytes(fields.pop("png")))) as picture:
        fields["jpg"] = encoded(np.array(picture), "jpeg")[:400]


def _wrong_width(fields: ShardSample) -> None:
    fields["json"] = json.dumps(json.loads(fields["json"]) | {"width": 65, "height": 64}).encode()


def _no_text(fields: ShardSample) -> None:
    fields["json"] = b'{"width": 64}'


def _blank_caption(fields: ShardSample) -> None:
    fields["json"] = b'{"caption": " "}'


def _talk_of_one(fields: ShardSample) -> None:
    record = json.loads(fields["json"])
    fields["json"] = json.dumps(record | {"conversations": record["conversations"][:1]}).encode()


def _no_json(fields: ShardSample) -> None:
    fields["json"] = b"{"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_scaled_depth, "depth runs from"),
        (_eight_bits, "16"),
        (_foreign_id, "segmentation ids [9]"),
        (_no_marker, "0 turns with <image>"),
        (_kinds_short, "kinds for"),
        (_no_json, "json"),
        (_colors_for_ids, "'seg.png' is a PNG of mode RGB; legal are ids in a palette"),
        (_palette_too_short, "its palette only 1 colors"),
        (_other_size, "segmentation is (32, 32), depth (64, 64)"),
        (_cut_jpeg, "field 'jpg' (400 bytes) is not a readable"),
        (_wrong_width, "json says 65 x 64 pixels, the picture has 64 x 64"),
        (_no_text, "has neither conversations nor a caption nor questions"),
        (_blank_caption, "has an empty caption"),
        (_talk_of_one, "has turns from ['human']"),
    ],
)
def test_samples_whose_parts_do_not_fit_are_found(change, said, tmp_path, capsys):
    fields = sample(1, "val", 0, 64)
    change(fields)
    _written([fields], tmp_path)
    assert main(["verify", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert said in shown and "val-00000000" in shown


def test_all_samples_with_faults_are_counted(tmp_path, capsys):
    samples = [sample(1, "val", number, 64) for number in range(5)]
    for fields in samples[1:4]:
        _eight_bits(fields)
    _written(samples, tmp_path)
    assert main(["verify", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "Sample 'val-00000001': field 'depth.png'" in shown and "(and 2 more samples with faults)" in shown


def test_captions_gray_ids_and_constant_depth_are_legal(tmp_path):
    flat, gray, text = (sample(1, "val", number, 64) for number in range(3))
    for fields in (flat, gray):
        fields["json"] = json.dumps({"caption": "words"}).encode()
    flat["depth.png"] = encoded(np.zeros((64, 64), dtype=np.uint16))
    gray["seg.png"] = encoded(np.full((64, 64), 255, dtype=np.uint8))
    talk = [{"from": "human", "value": "hello ?"}, {"from": "gpt", "value": "yes"}]
    text = {"__key__": "text", "json": json.dumps({"conversations": talk}).encode()}
    _written([flat, gray, text], tmp_path)
    assert main(["verify", str(tmp_path)]) == 0


def test_an_index_without_its_columns_and_interleaved_keys_are_found(tmp_path, capsys):
    """Shards whose statistics and manifest were made to fit, as another tool would have written them."""
    picture = sample(1, "val", 0, 64)["png"]
    _written([{"__key__": key, "json": b'{"caption": "x", "score": 1}', "png": picture} for key in "ab"], tmp_path)
    tar, index = tmp_path / "odd-000000.tar", tmp_path / "odd-000000.idx.json"
    _replaced(index, index.read_bytes().replace(b'"score":1', b'"score":2'), "index_sha256", tmp_path)
    assert main(["verify", str(tmp_path)]) == 1
    assert "odd-000000.idx.json does not match the members of the tar" in capsys.readouterr().out

    with tarfile.open(tar) as archive:
        members = [(member, archive.extractfile(member)) for member in archive]
        mixed = io.BytesIO()
        with tarfile.open(fileobj=mixed, mode="w") as other:
            for member, data in (members[k] for k in (0, 2, 1, 3)):
                other.addfile(member, data)
    _replaced(tar, mixed.getvalue(), "bytes", tmp_path)
    assert main(["verify", str(tmp_path)]) == 1
    assert "the fields of sample 'a' are not adjacent" in capsys.readouterr().out


def test_several_processes_find_the_same(folder, monkeypatch, capsys):
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: fork)  # spawned ones import torch again, for seconds
    os.truncate(folder / "ood-000001.tar", 9000)
    assert main(["verify", str(folder), "--workers", "2"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[1] for line in lines[:3]] == [" 10 samples, ok", " FAULT", " 10 samples, ok"]


def test_a_folder_without_manifest_is_no_data_set(tmp_path, capsys):
    for command in ("verify", "stats"):
        assert main([command, str(tmp_path)]) == 2
        assert "no dataset.json" in capsys.readouterr().err


def _written(samples: Sequence[ShardSample], folder: Path) -> None:
    write_whole(Job(folder, "odd", {"command": "test"}, shards=1, shard=lambda number: Shard(samples=samples)))


def _replaced(path: Path, content: bytes, counted: str, folder: Path) -> None:
    """Put other content into a file of the one shard, and its new size or hash wherever the old one is written down."""
    value = {"bytes": len(content), "index_sha256": hashlib.sha256(content).hexdigest()}[counted]
    path.write_bytes(content)
    stats = json.loads((folder / "odd-000000_stats.json").read_text())
    (folder / "odd-000000_stats.json").write_text(json.dumps(stats | {counted: value}))
    manifest = json.loads((folder / "dataset.json").read_text())
    manifest["shards"][0][counted] = value
    (folder / "dataset.json").write_text(json.dumps(manifest))


def _patch(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def _append(path: Path, data: bytes) -> None:
    with open(path, "ab") as stream:
        stream.write(data)
