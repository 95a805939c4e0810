"""Shards: same bytes for any number of workers and interruptions; nothing half-written looks done."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset

from data_prep import shard_writer
from data_prep.__main__ import main
from data_prep.scenes import command
from megaunigame.data.shards.manifest import LONGEST_FILE
from megaunigame.errors import ConfigError
from tests.data_prep.stored import content

COUNT = 50


def scenes(folder: Path, *more: str) -> int:
    settings = ["--count", str(COUNT), "--shard-size", "20", "--split", "train", "--seed", "4"]
    return main(["scenes", "--out", str(folder), *settings, *more])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert scenes(folder) == 0
    return folder


def test_two_workers_write_the_same_bytes(whole, tmp_path):
    assert scenes(tmp_path, "--workers", "2") == 0
    assert content(tmp_path) == content(whole)
    assert set(content(whole)) == {
        "dataset.json",
        *(f"train-00000{k}{end}" for k in range(3) for end in (".tar", ".idx.json", "_stats.json")),
    }


def test_every_file_is_flushed_before_it_has_its_name(tmp_path, monkeypatch):
    flushed, named, fsync, replace = set(), [], os.fsync, os.replace

    def noting(handle):
        flushed.add(os.fstat(handle).st_ino)
        fsync(handle)

    def replacing(fresh, target):
        named.append(Path(target).name)
        assert os.stat(fresh).st_ino in flushed, f"{named[-1]} may be empty after a power cut"
        replace(fresh, target)

    monkeypatch.setattr(os, "fsync", noting)
    monkeypatch.setattr(os, "replace", replacing)
    assert main(["scenes", "--out", str(tmp_path), "--count", "2", "--shard-size", "4", "--split", "train", "--seed", "4"]) == 0
    ending = ("train-000000.tar", "train-000000.idx.json", "train-000000_stats.json", "dataset.json")
    assert [name for name in named if name in ending] == [*ending]


def test_the_questions_are_a_setting_of_the_shards(whole, tmp_path, capsys):
    assert scenes(whole, "--questions", "mixed") == 0
    assert "3 of 3 shards are already there" in capsys.readouterr().out
    assert scenes(whole, "--questions", "order") != 0
    assert "--overwrite" in capsys.readouterr().err
    assert scenes(tmp_path / "new", "--questions", "order") == 0
    assert json.loads((tmp_path / "new" / "dataset.json").read_text())["samples"] == COUNT
    assert content(tmp_path / "new") != content(whole)
    assert scenes(tmp_path / "pairs", "--questions", "order", "--split", "adversarial") != 0
    assert "leave out --questions order" in capsys.readouterr().err


def test_the_name_of_the_shards_leaves_room_for_the_endings_of_files(tmp_path):
    longest = shard_writer.LONGEST_NAME_OF_SHARDS
    shard_writer.Job(tmp_path, "n" * longest, {}, 1, shard_writer.Shard)
    with pytest.raises(ConfigError, match=f"which has {longest + 1} bytes; at most {longest} .* Type --name NAME"):
        shard_writer.Job(tmp_path, "n" * (longest + 1), {}, 1, shard_writer.Shard)
    temporary = f"{'n' * longest}-000000.idx.json.{'h' * 64}-{2**22}.tmp"
    assert len(temporary) <= 255 and longest + len("-000000.tar") <= LONGEST_FILE


def test_index_and_manifest_describe_the_tars(whole):
    manifest = json.loads((whole / "dataset.json").read_text())
    assert manifest["samples"] == COUNT
    assert [shard["samples"] for shard in manifest["shards"]] == [20, 20, 10]
    assert manifest["fields"] == ["depth.png", "json", "png", "seg.png"]
    keys = []
    for shard in manifest["shards"]:
        index = json.loads((whole / shard["file"]).with_suffix(".idx.json").read_text())
        raw = (whole / shard["file"]).read_bytes()
        with tarfile.open(whole / shard["file"]) as tar:
            for sample in index["samples"]:
                keys.append(sample["key"])
                for name, (offset, size) in sample["fields"].items():
                    stored = tar.extractfile(f"{sample['key']}.{name}")
                    assert stored is not None
                    assert raw[offset : offset + size] == stored.read()
    assert keys == [f"train-{k:08d}" for k in range(COUNT)]


def test_webdataset_reads_the_shards(whole):
    shards = webdataset.WebDataset(str(whole / "train-{000000..000002}.tar"), shardshuffle=False).decode("rgb8")
    samples = list(shards)
    assert len(samples) == COUNT
    assert samples[0]["png"].shape == (64, 64, 3)
    assert samples[0]["json"]["objects"]


def test_an_interrupted_run_continues_to_the_same_bytes(whole, tmp_path, monkeypatch):
    real, rendered = command.sample, []

    def dies_at_30_once(seed: int, split: str, index: int, size: int, questions: str) -> dict[str, bytes | str]:
        rendered.append(index)
        if rendered == list(range(31)):
            raise KeyboardInterrupt
        return real(seed, split, index, size, questions)

    monkeypatch.setattr(command, "sample", dies_at_30_once)
    with pytest.raises(KeyboardInterrupt):
        scenes(tmp_path)
    left = set(content(tmp_path))
    assert "train-000001.tar.tmp" in left
    assert not left & {"train-000001.tar", "train-000001_stats.json", "dataset.json"}

    rendered.clear()
    assert scenes(tmp_path) == 0
    assert rendered == list(range(20, COUNT))
    assert content(tmp_path) == content(whole)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no statistics": lambda folder: (folder / "train-000001_stats.json").unlink(),
    "short tar": lambda folder: os.truncate(folder / "train-000001.tar", 5000),
    "no tar": lambda folder: (folder / "train-000001.tar").unlink(),
    "no index": lambda folder: (folder / "train-000001.idx.json").unlink(),
    "other index": lambda folder: (folder / "train-000001.idx.json").write_text('{"version": 1, "samples": []}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_shard_that_is_not_whole_is_written_again(damage, whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    DAMAGES[damage](tmp_path)
    untouched = (tmp_path / "train-000000.tar").stat().st_mtime_ns
    assert scenes(tmp_path) == 0
    assert content(tmp_path) == content(whole)
    assert (tmp_path / "train-000000.tar").stat().st_mtime_ns == untouched


def test_other_settings_in_the_same_folder_are_refused_until_overwrite(whole, tmp_path, refusal):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    assert "--overwrite" in refusal(scenes(tmp_path, "--count", "20"))
    assert content(tmp_path) == content(whole)
    assert scenes(tmp_path, "--count", "20", "--overwrite") == 0
    assert set(content(tmp_path)) == {"dataset.json", "train-000000.tar", "train-000000.idx.json", "train-000000_stats.json"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--count", "0"], "--count 0: must be at least 1"),
        (["--size", "32"], "--size 32: must be at least 64"),
        (["--workers", "0"], "--workers 0: must be at least 1"),
        (["--split", "adversarial", "--count", "7"], "must be even"),
    ],
)
def test_bad_numbers_are_refused_before_anything_is_written(arguments, said, tmp_path, refusal):
    assert said in refusal(scenes(tmp_path / "new", *arguments))
    assert not (tmp_path / "new").exists()


def test_config_hash_ignores_key_order_only():
    assert shard_writer.hash_of({"a": 1, "b": 2}) == shard_writer.hash_of({"b": 2, "a": 1})
    assert shard_writer.hash_of({"a": 1}) != shard_writer.hash_of({"a": 2})
