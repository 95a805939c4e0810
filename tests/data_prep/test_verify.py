"""`verify` passes what was written and finds what was changed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from data_prep.__main__ import main
from data_prep.scenes.samples import sample
from data_prep.shard_writer import Job, Shard, ShardSample
from tests.data.shard_files import encoded
from tests.data_prep.stored import pixels, write_whole
from tests.data_prep.toy_sets import TEXT


@pytest.fixture
def folder(ood_scenes: Path, tmp_path) -> Path:
    return Path(shutil.copytree(ood_scenes, tmp_path / "copy"))


@pytest.fixture
def faults(capsys) -> Callable[..., str]:
    """What `verify` says of a folder with faults."""

    def said(folder: Path, *more: str) -> str:
        assert main(["verify", str(folder), *more]) == 1
        return capsys.readouterr().out

    return said


def test_a_good_folder_passes_with_a_line_per_shard(folder, capsys):
    assert main(["verify", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"ood-00000{k}.tar: 10 samples, ok" for k in range(3)] + ["3 shards, 0 with faults"]


def flip(folder: Path) -> None:
    index = json.loads((folder / "ood-000001.idx.json").read_text())
    offset, _ = index["samples"][4]["fields"]["png"]
    _patch(folder / "ood-000001.tar", offset, b"\0" * 8)


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (flip, "ood-000001.tar: FAULT: Sample 'ood-00000014'"),
        (lambda f: (f / "ood-000001.tar").unlink(), "ood-000001.tar is missing"),
        (lambda f: (f / "ood-000001_stats.json").unlink(), "ood-000001_stats.json is missing"),
        (lambda f: _patch(f / "ood-000001.tar", 0, b"\0" * 512, os.SEEK_END), "bytes long"),
        (lambda f: os.truncate(f / "ood-000001.tar", 9000), "is 9000 bytes long, dataset.json says"),
        (lambda f: _patch(f / "ood-000001.idx.json", 0, b" ", os.SEEK_END), "is not the index that was written"),
        (lambda f: _patch(f / "ood-000001.tar", 0, b"x"), "FAULT"),
        (lambda f: shutil.copy(f / "ood-000000_stats.json", f / "ood-000001_stats.json"), "says"),
    ],
)
def test_tampered_shards_are_found(tamper, said, folder, faults):
    tamper(folder)
    shown = faults(folder)
    assert said in shown
    assert "ood-000000.tar: 10 samples, ok" in shown and "3 shards, 1 with faults" in shown


def shortened(record: bytes, name: str, length: int) -> bytes:
    """The JSON with the first entries of one of its lists."""
    fields = json.loads(record)
    return json.dumps(fields | {name: fields[name][:length]}).encode()


def one_color(ids: bytes) -> bytes:
    """Ids kept, palette cut to one color; Pillow would not write such a file, so the chunks are put together by hand."""
    at = ids.index(b"PLTE") - 4
    length = int.from_bytes(ids[at : at + 4], "big")
    chunk = b"PLTE" + bytes(3)
    return ids[:at] + (3).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + ids[at + 12 + length :]


CAPTION = json.dumps({"caption": "words"}).encode()
EIGHT_BITS = encoded(np.zeros((64, 64), dtype=np.uint8))
SMALL_IDS = encoded(np.zeros((32, 32), np.uint8), palette=256)
UNFIT: dict[str, tuple[Callable[[dict[str, bytes]], dict[str, bytes]], str]] = {
    "half of the depth": (lambda f: {"depth.png": encoded(pixels(f["depth.png"]) // 2)}, "depth runs from"),
    "depth of 8 bits": (lambda f: {"depth.png": EIGHT_BITS}, "16"),
    "id of no object": (lambda f: {"seg.png": encoded(np.full((64, 64), 9, dtype=np.uint8))}, "segmentation ids [9]"),
    "places of two pictures": (lambda f: {"json": f["json"].replace(b"<image>", b"<image>\\n<image>")}, "<image> 2 times"),
    "a kind too few": (lambda f: {"json": shortened(f["json"], "kinds", -1)}, "kinds for"),
    "no JSON": (lambda f: {"json": b"{"}, "json"),
    "colors for ids": (
        lambda f: {"seg.png": encoded(pixels(f["seg.png"], "RGB"))},
        "'seg.png' is a PNG of mode RGB; legal are ids in a palette",
    ),
    "short palette": (lambda f: {"seg.png": one_color(f["seg.png"])}, "its palette only 1 colors"),
    "another size": (lambda f: {"seg.png": SMALL_IDS, "json": CAPTION}, "segmentation is (32, 32), depth (64, 64)"),
    "cut JPEG": (lambda f: {"jpg": encoded(pixels(f.pop("png")), "jpeg")[:400]}, "field 'jpg' (400 bytes) is not a readable"),
    "another width": (
        lambda f: {"json": json.dumps(json.loads(f["json"]) | {"width": 65, "height": 64}).encode()},
        "json says 65 x 64 pixels, the picture has 64 x 64",
    ),
    "no text": (lambda f: {"json": b'{"width": 64}'}, "has neither conversations nor a caption nor questions"),
    "blank caption": (lambda f: {"json": b'{"caption": " "}'}, "has an empty caption"),
    "talk of one": (lambda f: {"json": shortened(f["json"], "conversations", 1)}, "has turns from ['human']"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_samples_whose_parts_do_not_fit_are_found(case, tmp_path, faults):
    change, said = UNFIT[case]
    fields = sample(1, "val", 0, 64)
    fields |= change(fields)
    _written([fields], tmp_path)
    shown = faults(tmp_path)
    assert said in shown and "val-00000000" in shown


def test_all_samples_with_faults_are_counted(tmp_path, faults):
    samples = [sample(1, "val", number, 64) for number in range(5)]
    for fields in samples[1:4]:
        fields["depth.png"] = EIGHT_BITS
    _written(samples, tmp_path)
    shown = faults(tmp_path)
    assert "Sample 'val-00000001': field 'depth.png'" in shown and "(and 2 more samples with faults)" in shown


def test_captions_gray_ids_no_ids_and_constant_depth_are_legal(tmp_path):
    flat, gray = (sample(1, "val", number, 64) | {"json": CAPTION} for number in range(2))
    flat["depth.png"] = encoded(np.zeros((64, 64), dtype=np.uint16))
    flat["seg.png"] = encoded(np.zeros((64, 64), dtype=np.uint8), palette=256)
    gray["seg.png"] = encoded(np.full((64, 64), 255, dtype=np.uint8))
    text = {"__key__": "text", "json": json.dumps({"conversations": TEXT}).encode()}
    _written([flat, gray, text], tmp_path)
    assert main(["verify", str(tmp_path)]) == 0


def test_an_index_without_its_columns_and_interleaved_keys_are_found(tmp_path, faults):
    """Shards whose statistics and manifest were made to fit, as another tool would have written them."""
    picture = sample(1, "val", 0, 64)["png"]
    _written([{"__key__": key, "json": b'{"caption": "x", "score": 1}', "png": picture} for key in "ab"], tmp_path)
    tar, index = tmp_path / "odd-000000.tar", tmp_path / "odd-000000.idx.json"
    _replaced(index, index.read_bytes().replace(b'"score":1', b'"score":2'), "index_sha256", tmp_path)
    assert "odd-000000.idx.json does not match the members of the tar" in faults(tmp_path)

    _replaced(index, index.read_bytes().replace(b'"score":2', b'"score":1'), "index_sha256", tmp_path)
    assert main(["verify", str(tmp_path)]) == 0
    earlier = index.read_bytes().replace(b',"caption_characters":1', b"")
    assert earlier != index.read_bytes(), "the column was there"
    _replaced(index, earlier, "index_sha256", tmp_path)
    assert main(["verify", str(tmp_path)]) == 0

    with tarfile.open(tar) as archive:
        members = [(member, archive.extractfile(member)) for member in archive]
        mixed = io.BytesIO()
        with tarfile.open(fileobj=mixed, mode="w") as other:
            for member, data in (members[k] for k in (0, 2, 1, 3)):
                other.addfile(member, data)
    _replaced(tar, mixed.getvalue(), "bytes", tmp_path)
    assert "the fields of sample 'a' are not adjacent" in faults(tmp_path)


def test_several_processes_find_the_same(folder, forked, faults):
    os.truncate(folder / "ood-000001.tar", 9000)
    lines = faults(folder, "--workers", "2").splitlines()
    assert [line.split(":")[1] for line in lines[:3]] == [" 10 samples, ok", " FAULT", " 10 samples, ok"]


@pytest.mark.parametrize("command", ["verify", "stats"])
def test_a_folder_without_manifest_is_not_a_data_set(command, tmp_path, refusal):
    assert "no dataset.json" in refusal(main([command, str(tmp_path)]))


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


def _patch(path: Path, offset: int, data: bytes, whence: int = os.SEEK_SET) -> None:
    with open(path, "r+b") as stream:
        stream.seek(offset, whence)
        stream.write(data)
