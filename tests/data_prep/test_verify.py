"""`verify` passes what was written and finds what was changed; `stats` counts it."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.scenes.samples import sample
from data_prep.shard_writer import Job, Shard, ShardSample, write_dataset, write_manifest


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    assert main(["scenes", "--out", str(folder), "--count", "30", "--shard-size", "10", "--split", "ood"]) == 0
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "copy"))


def test_a_good_folder_passes_with_a_line_per_shard(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"ood-00000{k}.tar: 10 samples, ok" for k in range(3)] + ["3 shards, 0 with faults"]


def test_a_flipped_byte_in_a_picture_is_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
        (lambda f: _append(f / "ood-000001.idx.json", b" "), "is not the index that was written"),
        (lambda f: _patch(f / "ood-000001.tar", 0, b"x"), "FAULT"),
        (lambda f: shutil.copy(f / "ood-000000_stats.json", f / "ood-000001_stats.json"), "says"),
    ],
)
def test_tampered_shards_are_found(
    tamper: Callable[[Path], object], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tamper(folder)
    assert main(["verify", str(folder)]) == 1
    shown = capsys.readouterr().out
    assert said in shown
    assert "ood-000000.tar: 10 samples, ok" in shown and "3 shards, 1 with faults" in shown


def _scaled_depth(fields: ShardSample) -> None:
    depth = np.array(Image.open(io.BytesIO(bytes(fields["depth.png"])))) // 2
    fields["depth.png"] = _png(Image.fromarray(depth))


def _eight_bits(fields: ShardSample) -> None:
    fields["depth.png"] = _png(Image.fromarray(np.zeros((64, 64), dtype=np.uint8)))


def _foreign_id(fields: ShardSample) -> None:
    fields["seg.png"] = _png(Image.fromarray(np.full((64, 64), 9, dtype=np.uint8)))


def _no_marker(fields: ShardSample) -> None:
    fields["json"] = bytes(fields["json"]).replace(b"<image>", b"")


def _kinds_short(fields: ShardSample) -> None:
    record = json.loads(fields["json"])
    fields["json"] = json.dumps(record | {"kinds": record["kinds"][:-1]}).encode()


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
    ],
)
def test_samples_whose_parts_do_not_fit_are_found(
    change: Callable[[ShardSample], None], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def shard(number: int) -> Shard:
        fields = sample(1, "val", number, 64)
        change(fields)
        return Shard(samples=[fields])

    job = Job(tmp_path, "odd", {"command": "test"}, shards=1, shard=shard)
    statistics = write_dataset(job, workers=1, overwrite=False)
    assert statistics is not None
    write_manifest(job, statistics)
    assert main(["verify", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert said in shown and "val-00000000" in shown


def test_a_folder_without_manifest_is_no_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("verify", "stats"):
        assert main([command, str(tmp_path)]) == 2
        assert "no dataset.json" in capsys.readouterr().err


def test_stats_prints_chance_and_majority_per_kind(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", str(good)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("ood: 30 samples, 3 shards,")
    exist = next(line for line in shown.splitlines() if line.startswith("exist"))
    assert exist.split()[2] == "50.0"
    assert "description" in shown


def _patch(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def _append(path: Path, data: bytes) -> None:
    with open(path, "ab") as stream:
        stream.write(data)


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "png")
    return out.getvalue()
