"""Dead at any step, split over ranks, retried, or out of disk: the shards come out as if nothing had happened."""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep import shard_writer, whole_files
from data_prep.__main__ import main
from data_prep.shard_writer import Job, Shard, ShardSample, write_dataset
from data_prep.whole_files import write_atomically
from megaunigame.errors import DataError
from tests.data_prep.stored import content, failures_of, samples_of
from tests.data_prep.toy_sets import TALK, picture

ENTRIES = 30
SHARD_SIZE = 5


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A LLaVA file and its pictures; number 12 is missing."""
    folder = tmp_path_factory.mktemp("source")
    entries = [{"id": k, "image": f"{k}.jpg", "conversations": TALK} for k in range(ENTRIES)]
    (folder / "entries.json").write_text(json.dumps(entries))
    for k in range(ENTRIES):
        if k != 12:
            (folder / f"{k}.jpg").write_bytes(picture(k, 96, 96))
    return folder


def arguments(source: Path, out: Path, *more: str) -> list[str]:
    files = ["--json", str(source / "entries.json"), "--image-root", str(source), "--out", str(out)]
    limits = ["--shard-size", str(SHARD_SIZE), "--max-failed-fraction", "0.1"]
    return ["pack", "--format", "llava-json", *files, *limits, *more]


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert main(arguments(source, folder)) == 0
    return folder


def dies_before_rename(number: int, command: list[str], patch: pytest.MonkeyPatch) -> None:
    real, renames = os.replace, []

    def dies(here: Path, there: Path) -> None:
        if len(renames) == number:
            raise KeyboardInterrupt  # as far as the files are concerned, the end of the process
        renames.append(there)
        real(here, there)

    with patch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "replace", dies)
        main(command)


@pytest.mark.parametrize("step", range(12))
def test_dead_after_any_step_and_run_again(step, source, whole, tmp_path, monkeypatch):
    """There are three renames per shard."""
    dies_before_rename(step, arguments(source, tmp_path), monkeypatch)
    assert not (tmp_path / "dataset.json").exists()
    assert main(arguments(source, tmp_path)) == 0
    assert content(tmp_path) == content(whole)


@pytest.mark.parametrize("step", range(1, 4))  # the first rename is of the note that the folder is unfinished
def test_dead_in_a_retry_and_run_again(step, source, tmp_path, monkeypatch):
    out, pictures = tmp_path / "out", shutil.copytree(source, tmp_path / "pictures")
    assert main(arguments(pictures, out)) == 0
    (pictures / "12.jpg").write_bytes((pictures / "11.jpg").read_bytes())
    dies_before_rename(step, arguments(pictures, out, "--retry-failed"), monkeypatch)
    assert not (out / "dataset.json").exists()
    assert main(arguments(pictures, out)) == 0
    assert "00000012-12" in samples_of(out)
    assert main(["verify", str(out)]) == 0


def test_ranks_together_write_what_one_process_writes(source, whole, tmp_path, capsys):
    for rank in (2, 0):
        assert main(arguments(source, tmp_path, "--rank", str(rank), "--world", "3")) == 0
    said = capsys.readouterr().out
    assert "part 2 of 3 is done; 4 of 6 shards are left to other ranks" in said
    assert "part 0 of 3 is done; 2 of 6 shards are left" in said
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == [f"llava-00000{k}.tar" for k in (0, 2, 3, 5)]
    assert not (tmp_path / "dataset.json").exists()
    assert main(arguments(source, tmp_path, "--rank", "1", "--world", "3")) == 0
    assert content(tmp_path) == content(whole)


def test_ranks_at_the_same_time(source, whole, tmp_path, monkeypatch):
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (time.sleep(0.02), real(descriptor)))  # so that they overlap

    def run(rank: str) -> None:
        sys.exit(main(arguments(source, tmp_path, "--rank", rank, "--world", "2")))

    ranks = [multiprocessing.get_context("fork").Process(target=run, args=(rank,)) for rank in "01"]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert content(tmp_path) == content(whole)


def test_a_rank_leaves_the_others_files_alone(source, whole, tmp_path):
    theirs = tmp_path / "llava-000001.tar.tmp"
    theirs.write_text("rank 1 is at it")
    own = tmp_path / "llava-000002.idx.json.host-12.tmp"
    own.write_text("left by a killed rank 0")
    (tmp_path / "llava-000003.tar").write_text("rank 1's, of an older run")
    assert main(arguments(source, tmp_path, "--rank", "0", "--world", "2", "--overwrite")) == 0
    assert theirs.read_text() == "rank 1 is at it" and (tmp_path / "llava-000003.tar").exists() and not own.exists()
    assert main(arguments(source, tmp_path, "--rank", "1", "--world", "2", "--overwrite")) == 0
    assert content(tmp_path) == content(whole)


def test_retry_fixes_the_shard_of_a_picture_that_came_back(source, whole, tmp_path):
    out, pictures = tmp_path / "out", shutil.copytree(source, tmp_path / "pictures")
    assert main(arguments(pictures, out)) == 0
    assert failures_of(out) == [{"key": "00000012-12", "image": "12.jpg", "reason": "missing file"}]
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("llava-*")}

    (pictures / "12.jpg").write_bytes(picture(12, 96, 96))
    assert main(arguments(pictures, out)) == 0
    assert "00000012-12" not in samples_of(out), "without --retry-failed a shard that is done stays"
    assert main(arguments(pictures, out, "--retry-failed")) == 0
    assert samples_of(out)["00000012-12"]["jpg"] == picture(12, 96, 96)
    assert not (out / "failures.jsonl").exists()
    touched = {path.name for path in out.glob("llava-*") if path.stat().st_mtime_ns != before[path.name]}
    assert touched == {"llava-000002.tar", "llava-000002.idx.json", "llava-000002_stats.json"}
    assert main(["verify", str(out)]) == 0

    (pictures / "7.jpg").unlink()  # nothing failed any more, so nothing is looked at again
    assert main(arguments(pictures, out, "--retry-failed")) == 0
    assert "00000007-7" in samples_of(out)


class _FullDisk(io.BufferedWriter):
    """A file on a disk with room for so many bytes."""

    def __init__(self, path: Path, room: int):
        super().__init__(io.FileIO(path, "w"))
        self.room = room

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.mark.parametrize("full_at", ["llava-000001.tar", "llava-000001.idx.json", "llava-000001_stats.json", "dataset.json"])
def test_a_full_disk_leaves_nothing_half_written(full_at, source, whole, tmp_path, monkeypatch, refusal):
    def opened(path: Path, mode: str) -> io.BufferedWriter:
        return _FullDisk(path, 40 if path.name.startswith(full_at) and mode == "wb" else 10**9)

    with monkeypatch.context() as patch:
        for module in (shard_writer, whole_files):
            patch.setattr(module, "open", opened, raising=False)
        said = refusal(main(arguments(source, tmp_path)))
    assert f"{full_at}" in said and "cannot be written: the disk is full" in said and "run the same command again" in said
    assert not list(tmp_path.glob("*.tmp")) and not (tmp_path / "dataset.json").exists()
    assert (tmp_path / "llava-000000_stats.json").exists()
    assert main(arguments(source, tmp_path)) == 0
    assert content(tmp_path) == content(whole)


def test_a_source_that_breaks_is_not_taken_for_a_full_disk(tmp_path):
    def samples() -> Iterator[ShardSample]:
        yield {"__key__": "a", "json": b"{}"}
        raise OSError(errno.EIO, "Input/output error")

    job = Job(tmp_path, "x", {}, shards=1, shard=lambda number: Shard(samples=samples()))
    with pytest.raises(DataError, match="x-000000: its source cannot be read .*Input/output error"):
        write_dataset(job, workers=1, overwrite=False)
    assert [path.name for path in tmp_path.glob("*.json")] == ["unfinished.json"]


def test_an_out_folder_that_cannot_be_made_is_named(source, tmp_path, refusal):
    (tmp_path / "file").touch()
    assert "no such folder can be made" in refusal(main(arguments(source, tmp_path / "file" / "out")))
    with pytest.raises(DataError, match="cannot be written"):
        write_atomically(tmp_path / "nowhere" / "x", b"")


def test_numbers_of_the_json_become_columns_of_the_index(tmp_path):
    metas = ['{"a": 1, "b": 0.5, "c": "2", "d": true, "e": {"f": 1}, "g": NaN, "h": null}', '{"c": "x"}', "[1]"]
    samples: list[ShardSample] = [{"__key__": f"k{n}", "json": meta.encode()} for n, meta in enumerate(metas)]
    turns = [{"from": "human", "value": "<image>\nwhat ?"}, {"from": "gpt", "value": "a ball"}]
    told = json.dumps({"conversations": turns, "caption": "two balls", "caption_characters": 5}).encode()
    samples += [{"__key__": "told", "json": told, "png": b"x"}, {"__key__": "lost", "json": told}]
    samples += [{"__key__": "huge", "json": b'{"a": -3, "b": 1' + 400 * b"0" + b"}"}, {"__key__": "none", "png": b"x"}]
    job = Job(tmp_path, "x", {}, shards=1, shard=lambda number: Shard(samples=samples))
    write_dataset(job, workers=1, overwrite=False)
    index = json.loads((tmp_path / "x-000000.idx.json").read_text())
    columns = {sample["key"]: sample["columns"] if "columns" in sample else None for sample in index["samples"]}
    texts = {"conversation_characters": 12, "conversation_pairs": 1, "caption_characters": 9}
    assert columns.pop("told") == texts
    assert columns.pop("lost") == {"caption_characters": 9}, "a conversation about a picture that is not there"
    assert columns == {"k0": {"a": 1, "b": 0.5}, "k1": None, "k2": None, "huge": {"a": -3}, "none": None}
    assert index["version"] == 1


def test_the_limit_is_a_share_of_the_whole_set_for_every_rank(source, tmp_path, refusal):
    """One of the five entries of shard 2 is missing: 1 of 30, not 1 of 5."""
    for rank in "210":
        assert main(arguments(source, tmp_path / "out", "--rank", rank, "--world", "3")) == 0
    assert (tmp_path / "out" / "dataset.json").exists()
    strict = ("--max-failed-fraction", "0.03")
    said = refusal(main(arguments(source, tmp_path / "strict", "--rank", "0", "--world", "3", *strict)))
    assert "1 of 30 entries failed (missing file: 12.jpg, ...)" in said
    assert not list((tmp_path / "strict").glob("*.tar")), "rank 0 says so before it packs anything"
    for rank in "12":  # the others do not look; whoever ends last would
        assert main(arguments(source, tmp_path / "strict", "--rank", rank, "--world", "3", *strict)) == 0
    assert not (tmp_path / "strict" / "dataset.json").exists()
