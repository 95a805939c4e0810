"""`data.NAME.source`: packed once, by one process, and read as shards."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from data_prep import first_use, shared_lock
from data_prep.__main__ import main
from data_prep.first_use import pack_sources
from data_prep.shared_lock import SharedLock
from megaunigame.config import CacheConfig, MixedConfig, StreamConfig
from megaunigame.data.shards.index import ShardIndex
from megaunigame.errors import ConfigError, DataError
from tests.data.shard_files import write_shards, write_tar
from tests.data_prep.stored import pixels, samples_of
from tests.data_prep.test_tables import rows, save_to_disk
from tests.data_prep.toy_sets import TALK, cc3m, picture


def llava(folder: Path, entries: int = 6, damaged: int = 0) -> Path:
    folder.mkdir()
    for k in range(entries):
        (folder / f"{k}.jpg").write_bytes(picture(k)[: 100 if k < damaged else None])
    listed = [{"id": k, "image": f"{k}.jpg", "conversations": TALK} for k in range(entries)]
    (folder / "data.json").write_text(json.dumps(listed))
    return folder / "data.json"


def test_pictures_are_packed_by_the_rules_of_the_stream(tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "in" / "a.png")
    entry = {"image": "a.png", "conversations": TALK}
    (tmp_path / "in" / "data.json").write_text(json.dumps([entry]))
    one = stream(tmp_path / "in", tmp_path / "cache", ground="#102030")
    pack_sources({"train": one})
    (fields,) = samples_of(Path(one.shards)).values()
    assert pixels(fields["png"], "RGB")[0, 0].tolist() == [0x10, 0x20, 0x30]


def stream(source: Path | str, cache: Path, **settings: str) -> StreamConfig:
    return StreamConfig(source=str(source), cache=CacheConfig(str(cache)), **settings)  # type: ignore[arg-type]


def test_a_json_file_is_packed_once(tmp_path, capfd, monkeypatch):
    source = llava(tmp_path / "in")
    one = stream(source, tmp_path / "cache")
    sources = pack_sources({"train": one})
    folder = Path(one.shards)
    assert sources == {one.shards: str(source)}
    assert (one.source, one.image_root) == ("", "") and folder.parent == tmp_path / "cache"
    assert ShardIndex.open(folder).samples == 6
    said = capfd.readouterr().out
    assert f"data.train: packing {source}, once, into {folder}" in said and f"are in {folder}" in said
    assert "data.train: 6 of 6 entries packed, 0 failed" in said
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, f"{folder.name}.log"]

    monkeypatch.setattr(subprocess, "Popen", None)  # nothing is packed anymore
    again, in_a_mix = stream(source, tmp_path / "cache"), stream("", tmp_path / "cache")
    in_a_mix.mix = {"a": MixedConfig(source=str(source)), "b": MixedConfig(shards="elsewhere")}
    pack_sources({"train": again, "mixed": in_a_mix})
    assert again.shards == in_a_mix.mix["a"].shards == one.shards and in_a_mix.mix["b"].shards == "elsewhere"


def test_a_pack_that_fails_names_the_command_and_goes_on_from_it(tmp_path, capfd):
    source = llava(tmp_path / "in", damaged=2)
    with pytest.raises(DataError) as error:
        pack_sources({"train": stream(source, tmp_path / "cache")})
    said = str(error.value)
    assert f"data.train.source={source} could not be packed (exit code 2" in said and "2 of 6 entries failed" in said
    assert "\n" not in said and not list((tmp_path / "cache").glob("*.lock"))
    typed = shlex.split(said.partition("type: megaunigame prepare ")[2].partition(" OPTION;")[0])
    assert main([*typed, "--max-failed-fraction", "0.5"]) == 0
    one = stream(source, tmp_path / "cache")
    pack_sources({"train": one})
    assert ShardIndex.open(one.shards).samples == 4


def test_another_source_of_the_same_name_is_another_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(first_use, "_pack_or_wait", lambda *_: None)
    folders = []
    for k in range(2):
        cc3m(tmp_path / "in", tars=1)
        os.utime(tmp_path / "in" / "cc3m-train-0000.tar", ns=(k, k))
        one = stream(tmp_path / "in", tmp_path / "cache")
        pack_sources({"train": one})
        folders.append(one.shards)
    assert folders[0] != folders[1]


def pack_and_tell(source: Path, cache: Path, local_rank: int, out: Path) -> None:
    os.environ["LOCAL_RANK"] = str(local_rank)
    started = subprocess.Popen

    def popen(*arguments, **settings):
        (out / f"packed-by-{local_rank}-{os.getpid()}").touch()
        return started(*arguments, **settings)

    subprocess.Popen = popen  # type: ignore[misc, assignment]
    one = stream(source, cache)
    pack_sources({"train": one})
    (out / f"done-{local_rank}-{os.getpid()}").write_text(str(ShardIndex.open(one.shards).samples))


def test_of_several_processes_and_runs_one_packs_and_all_get_the_shards(tmp_path):
    source = llava(tmp_path / "in")
    (tmp_path / "out").mkdir()
    context = multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=pack_and_tell, args=(source, tmp_path / "cache", rank, tmp_path / "out"))
        for rank in (1, 0, 0, 1)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [0, 0, 0, 0]
    assert len(list((tmp_path / "out").glob("packed-by-0-*"))) == 1 and not list((tmp_path / "out").glob("packed-by-1-*"))
    assert [file.read_text() for file in (tmp_path / "out").glob("done-*")] == 4 * ["6"]


def test_a_process_that_waits_for_nobody_ends(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(first_use, "PATIENCE", 0.2)
    with pytest.raises(DataError, match="nobody packs .* anymore"):
        pack_sources({"train": stream(llava(tmp_path / "in"), tmp_path / "cache")})


def test_forms_of_sources(tmp_path):
    cc3m(tmp_path / "tars")
    save_to_disk(tmp_path / "saved", rows(0, 2))
    llava(tmp_path / "llava")
    (tmp_path / "hub" / "data").mkdir(parents=True)
    (tmp_path / "hub" / "data" / "train-00000-of-00001.parquet").touch()
    (tmp_path / "hub" / "dataset_infos.json").touch()
    (tmp_path / "tars" / "00000_stats.json").touch()
    found = {name: first_use._form("data.x", tmp_path / name)[0] for name in ("tars", "saved", "llava", "hub")}
    assert found == {"tars": "wds", "saved": "arrow", "llava": "llava-json", "hub": "parquet"}
    assert first_use._form("data.x", Path("a/{0..3}.tar"))[0] == "wds"
    assert first_use._form("data.x", Path("a/TRAIN.JSON"))[0] == "llava-json"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        ("nothing", r"data\.x\.source=.*nothing is not there\. Give a JSON"),
        ("empty", r"data\.x\.source=.*empty has 0 JSON files and none of \.tar, \.parquet, \.arrow"),
        ("shards", r"is a folder of shards already\. Type data\.x\.shards=.*shards"),
        ("splits", r"data\.x: data\.x\.source=.*several splits; there are test, train\. Type data\.x\.split=train"),
        ("root", r"data\.x: data\.x\.image_root=.*no such folder"),
        ("file.txt", r"is no known form"),
        ("both", r"both has train\.json and images/archive\.tar: which is meant\? Type data\.x\.source=.*/train\.json for"),
        (
            "words.json.gz",
            r"is compressed\. Unpack it \(gunzip -k .*words\.json\.gz\), then type data\.x\.source=.*words\.json",
        ),
        ("s3://b/x.tar", r"s3://b/x\.tar is a URL, .*Download it first .*type data\.x\.shards=s3://b/x\.tar"),
        ("lists", r"several lists of entries: train, val\. .*jq '\.\[\"train\"\]' .* > train\.json"),
    ],
)
def test_sources_that_cannot_be_packed_are_named_in_words_of_the_recipe(make, words, tmp_path):
    source, settings = tmp_path / make, {}
    if make == "empty":
        source.mkdir()
    elif make == "shards":
        write_shards(source, [1])
    elif make == "splits":
        write_tar(source / "train" / "0.tar", [("a.txt", b"a")])
        write_tar(source / "test" / "0.tar", [("a.txt", b"a")])
    elif make == "root":
        source, settings = llava(tmp_path / "in"), {"image_root": str(tmp_path / "no")}
    elif make == "both":
        write_tar(source / "images" / "archive.tar", [("a.txt", b"a")])
        (source / "train.json").write_text("[]")
    elif make == "lists":
        source = llava(tmp_path / "in")
        source.write_text(json.dumps({"train": [{"conversations": TALK}], "val": [{"conversations": TALK}]}))
    elif make in ("file.txt", "words.json.gz"):
        source.touch()
    given = make if "://" in make else source
    with pytest.raises((ConfigError, DataError), match=words):
        pack_sources({"x": stream(given, tmp_path / "cache", **settings)})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (StreamConfig(shards="a", source="b"), "needs one of `shards`"),
        (StreamConfig(source="b"), r"data\.x\.cache\.folder=shards/packed"),
        (StreamConfig(shards="a", image_root="b"), r"data\.x\.image_root=b belongs to data\.x\.source"),
        (StreamConfig(shards="a", split="train"), r"data\.x\.split=train belongs to data\.x\.source"),
        (StreamConfig(source="b", backend="webdataset", cache=CacheConfig("c")), r"Leave out data\.x\.backend"),
        (StreamConfig(mix={"m": MixedConfig(source="b")}), r"data\.x\.cache\.folder=shards/packed"),
    ],
)
def test_settings_that_contradict_each_other(config, words):
    with pytest.raises(ConfigError, match=words):
        config.check("data.x")


# --- the lock


def hold(path: Path, seconds: float) -> subprocess.Popen[bytes]:
    """A process that takes the lock and keeps it."""
    code = (
        "import time; from pathlib import Path; from data_prep.shared_lock import SharedLock; "
        f"print(SharedLock(Path({str(path)!r})).take(), flush=True); time.sleep({seconds})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"True\n"
    return process


def test_a_lock_is_held_by_one_and_taken_from_the_dead(tmp_path):
    lock = SharedLock(tmp_path / "lock")
    process = hold(lock.path, 60)
    assert not lock.take() and lock.holder().endswith(f"process {process.pid}") and not lock.take()
    process.kill()
    process.wait()
    assert not lock.take() and lock.take()
    assert not SharedLock(lock.path).take()
    lock.release()
    assert not lock.path.exists()


def test_a_child_keeps_the_lock_of_its_parent(tmp_path):
    code = (
        "import subprocess, sys; from pathlib import Path; from data_prep.shared_lock import SharedLock; "
        f"lock = SharedLock(Path({str(tmp_path / 'lock')!r})); lock.take(); "
        "child = subprocess.Popen(['sleep', '60'], pass_fds=[lock.file], stdout=-3, stderr=-3); print(child.pid)"
    )
    child = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    lock = SharedLock(tmp_path / "lock")
    assert not any(lock.take() for _ in range(3))
    os.kill(child, 9)
    for _ in range(100):
        if lock.take():
            return
        time.sleep(0.05)
    raise AssertionError("the lock was not taken")


def test_a_lock_of_another_node_is_abandoned_when_it_is_not_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_lock, "ABANDONED_AFTER", 0.3)
    lock = SharedLock(tmp_path / "lock")
    lock.path.write_text("elsewhere 7")
    for _ in range(5):  # touched again and again
        os.utime(lock.path)
        assert not lock.take()
        time.sleep(0.1)
    assert lock.holder() == "elsewhere, process 7"
    time.sleep(0.4)
    assert not lock.take() and lock.take()
    assert lock.holder() != "elsewhere, process 7"
    lock.release()


def no_locks(code: int):
    def flock(file: int, how: int) -> None:
        if code:
            raise OSError(code, os.strerror(code))

    return flock


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, 0])
def test_without_advisory_locks_a_lock_of_this_node_is_held_while_it_is_touched(code, tmp_path, monkeypatch):
    """0: a file system that grants a lock to everybody."""
    monkeypatch.setattr(shared_lock, "ABANDONED_AFTER", 0.4)
    monkeypatch.setattr(shared_lock, "BEAT", 0.05)
    monkeypatch.setattr(fcntl, "flock", no_locks(code))
    first, second = SharedLock(tmp_path / "lock"), SharedLock(tmp_path / "lock")
    assert first.take()
    for _ in range(8):
        assert not second.take() and first.path.exists()
        time.sleep(0.1)
    first._end.set()  # it dies
    time.sleep(0.1)
    assert not second.take()
    time.sleep(0.5)
    assert not second.take() and second.take()
    second.release()


def test_touching_goes_on_after_a_file_system_was_away(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shared_lock, "BEAT", 0.02)
    touched, calls = os.utime, []

    def utime(path):
        if path != lock.path:  # of an earlier test
            return
        calls.append(path)
        if len(calls) < 4:
            raise OSError(errno.ESTALE if len(calls) % 2 else errno.EIO, "away")
        touched(path)

    lock = SharedLock(tmp_path / "lock")
    monkeypatch.setattr(os, "utime", utime)
    assert lock.take()
    before = lock.path.stat().st_mtime_ns
    for _ in range(100):
        if lock.path.stat().st_mtime_ns > before:
            break
        time.sleep(0.02)
    assert lock.path.stat().st_mtime_ns > before and caplog.text.count(f"{lock.path} cannot be touched") == 1
    lock.release()


def test_a_lock_that_was_taken_over_is_not_released_by_its_first_holder(tmp_path):
    first, second = SharedLock(tmp_path / "lock"), SharedLock(tmp_path / "lock")
    assert first.take()
    first.path.unlink()
    assert second.take()
    first.release()
    assert second.path.exists()
    second.release()
