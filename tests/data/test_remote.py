from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest

from megaunigame.config import CacheConfig, MixedConfig, StreamConfig
from megaunigame.data.loading.loader import MicroBatchLoader
from megaunigame.data.shards import cache as shard_cache
from megaunigame.data.shards.cache import ShardCache
from megaunigame.data.shards.index import ShardIndex
from megaunigame.data.shards.manifest import LONGEST_FILE, LONGEST_LOCAL_FILE, MOST_BYTES
from megaunigame.data.sources.opening import open_stream
from megaunigame.errors import ConfigError, DataError
from megaunigame.step.requests import UNDERSTAND, RowRequest, StepPlan
from megaunigame.storage.plain_names import LONGEST_NAME
from tests.data.http_folder import served
from tests.data.shard_files import everything, number_batches, sample_fields, write_shards, written

SIZES = [3, 5, 2, 4]
KILOBYTE = 1e-6
"""In gigabytes."""
pytestmark = pytest.mark.timeout(60)


def index_of(url: str, folder: Path, gigabytes: float = 1, open_shards: int = 4) -> ShardIndex:
    return ShardIndex.open(url, open_shards, ShardCache(folder, gigabytes, first_pause=0.01))


def cached(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.tar"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), SIZES, columns=lambda n: {"clip": n / 100})


def test_a_server_in_another_process_and_loader_workers(shards, tmp_path):
    """`python -m http.server`, as it comes; the micro-batches are those of the local folder."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(shards)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        port = re.search(r"port (\d+)", server.stdout.readline())[1]
        plan = StepPlan((RowRequest("answer", UNDERSTAND, "s", 3),))

        def numbers(location: str, workers: int) -> list:
            config = StreamConfig(location, window=2, where=["clip > 0.01"], cache=CacheConfig(str(tmp_path), 1))
            streams = {"s": open_stream("s", config, 7)}
            dataset = number_batches(plan, streams)
            return [b.inputs[UNDERSTAND].tokens.tolist() for b in MicroBatchLoader(dataset, 0, 10, workers)]

        local = numbers(str(shards), 0)
        assert numbers(f"http://127.0.0.1:{port}", 2) == local
        server.terminate()
    assert cached(tmp_path) == [f"data-00000{k}.tar" for k in range(4)]


@pytest.mark.parametrize("slash", ["", "/"])
def test_memory_url_reads_as_the_folder_and_has_its_hash(shards, tmp_path, slash):
    memory = fsspec.filesystem("memory")
    memory.put(str(shards), "/set", recursive=True)
    index = index_of(f"memory://set{slash}", tmp_path)
    assert everything(index) == everything(pickle.loads(pickle.dumps(index))) == written(SIZES)
    assert index.hash == ShardIndex.open(shards).hash
    memory.rm("/set", recursive=True)


def test_opening_reads_the_manifest_alone_and_each_file_comes_once(shards, tmp_path):
    with served(shards) as server:
        index = index_of(server.url, tmp_path)
        assert dict(server.requests) == {"dataset.json": 1}
        assert everything(index) == everything(index_of(server.url, tmp_path)) == written(SIZES)
    files = [p.name for p in shards.iterdir() if p.name != "dataset.json"]
    assert dict(server.requests) == {"dataset.json": 2, **dict.fromkeys(files, 1)}


def test_a_flaky_server_is_asked_again(shards, tmp_path):
    with served(shards) as server:
        server.refuse = 3
        index = index_of(server.url, tmp_path)
        server.refuse = 6
        assert everything(index) == written(SIZES)
        assert server.refuse == 0 and not list(tmp_path.rglob("*.part"))


def test_a_server_that_never_answers_well(shards, tmp_path):
    with served(shards) as server:
        index = index_of(server.url, tmp_path)
        server.refuse = 10**6
        with pytest.raises(DataError, match=r"idx\.json could not be read in 8 attempts; the last failed with \w+: .*resumes"):
            index.read(0, 0)
    assert not list(tmp_path.rglob("*.part")) and cached(tmp_path) == []


def _read_all(url: str, folder: Path, barrier: multiprocessing.Barrier, answers: multiprocessing.Queue) -> None:
    index = index_of(url, folder)
    barrier.wait()
    answers.put(everything(index) == written(SIZES))


def test_processes_of_a_node_download_once(shards, tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(4), context.Queue()
    with served(shards) as server:
        processes = [context.Process(target=_read_all, args=(server.url, tmp_path, barrier, answers)) for _ in range(4)]
        for process in processes:
            process.start()
        assert [answers.get(timeout=30) for _ in processes] == [True] * 4
        for process in processes:
            process.join()
    assert {n for name, n in server.requests.items() if name != "dataset.json"} == {1}


def test_longest_unused_shards_make_room(tmp_path):
    folder = write_shards(tmp_path / "shards", [2] * 6)
    shard = (folder / "data-000000.tar").stat().st_size
    bound = (3.5 * shard + 10_000) / 1e9
    with served(folder) as server:
        index = index_of(server.url, tmp_path / "cache", bound, open_shards=1)
        for k in (0, 1, 2, 0, 3):
            index.read(k, 0)
            time.sleep(0.01)  # so that times of use differ
        assert cached(tmp_path / "cache") == ["data-000000.tar", "data-000002.tar", "data-000003.tar"]
        for k in (4, 5, 1):
            index.read(k, 0)
        assert server.requests["data-000001.tar"] == 2


def test_a_shard_that_is_read_stays(tmp_path, caplog):
    folder = write_shards(tmp_path / "shards", [2] * 5)
    shard = (folder / "data-000000.tar").stat().st_size
    bound = (2.5 * shard + 10_000) / 1e9
    with served(folder) as server:
        reader = index_of(server.url, tmp_path / "cache", bound)
        first = reader.read(0, 1)
        other = index_of(server.url, tmp_path / "cache", bound, open_shards=1)
        for k in (1, 2, 3, 4):
            other.read(k, 0)
        assert "data-000000.tar" in cached(tmp_path / "cache") and len(cached(tmp_path / "cache")) == 2
        assert reader.read(0, 1) == first and "every shard in it is being read" not in caplog.text
        for k in (1, 2, 3):
            reader.read(k, 0)  # holds four open where two fit: goes on, and says so
        assert "every shard in it is being read" in caplog.text
        assert server.requests["data-000000.tar"] == 1


def test_the_next_window_is_fetched_ahead(tmp_path):
    folder = write_shards(tmp_path / "shards", [2] * 8)
    with served(folder) as server:
        config = StreamConfig(server.url, window=2, cache=CacheConfig(str(tmp_path / "cache"), 1))
        source = open_stream("s", config, 0).source
        source.find(0, 0).read()
        wanted = sorted(f"data-{k:06d}.tar" for p in (0, 4) for k in source.order.shards_of_window(p))
        deadline = time.monotonic() + 20
        while cached(tmp_path / "cache") != wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        assert cached(tmp_path / "cache") == wanted
        before = dict(server.requests)
        for position in range(4, 8):
            source.find(position, 0).read()
        now = {name: n for name, n in server.requests.items() if name in wanted}
        assert now == {name: before[name] for name in wanted}


def test_leftovers_of_a_killed_download_are_not_shards(shards, tmp_path):
    with served(shards) as server:
        everything(index_of(server.url, tmp_path))
        tar = next(tmp_path.rglob("data-000001.tar"))
        size = tar.stat().st_size
        tar.rename(tar.with_name(f"{tar.name}.{size}.part"))
        other = next(tmp_path.rglob("data-000002.tar"))
        other.write_bytes(other.read_bytes()[:1000])
        assert everything(index_of(server.url, tmp_path)) == written(SIZES)
        assert not list(tmp_path.rglob("*.part"))


def test_bytes_of_a_download_count_before_they_are_there(tmp_path):
    """Of a download that goes on: its file is locked, and says how large it will be."""
    cache = ShardCache(tmp_path, 1000 * KILOBYTE)
    part = cache.folder / f"data-000001.tar.{900_000}.part"
    with shard_cache._locked(cache.folder / "data-000001.tar.lock"):
        part.touch()
        assert cache._make_room(100_000, needed=False) and not cache._make_room(100_001, needed=False)
    assert cache._make_room(1_000_000, needed=False) and not part.exists(), "its process has died"


def test_a_download_is_flushed_before_it_gets_its_name(shards, tmp_path, monkeypatch):
    """Else a power cut leaves a whole name with half of the bytes, which other launches would read."""
    flushed, renamed, flush, rename = set(), [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: flushed.add(os.fstat(number).st_ino) or flush(number))
    monkeypatch.setattr(os, "replace", lambda old, new: renamed.append(os.stat(old).st_ino in flushed) or rename(old, new))
    with served(shards) as server:
        everything(index_of(server.url, tmp_path))
    assert renamed and all(renamed)


def test_other_files_in_the_folder_are_left_alone(shards, tmp_path):
    mine = write_shards(tmp_path / "cache", [2])
    with served(shards) as server:
        everything(index_of(server.url, mine, gigabytes=KILOBYTE, open_shards=1))
    assert everything(ShardIndex.open(mine))[1] == ("0000001", sample_fields(1))


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("data-000000.tar", bytes(512), "bytes, dataset.json says"),
        ("data-000000.idx.json", b'{"version": 1, "samples": []}', "sha256 differs"),
        ("dataset.json", None, "dataset.json is not there"),
    ],
)
def test_remote_files_that_do_not_fit_the_manifest(tmp_path, file, content, words):
    folder = write_shards(tmp_path / "shards", [2])
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with served(folder) as server, pytest.raises(DataError, match=words):
        index_of(server.url, tmp_path / "cache").read(0, 0)
    assert cached(tmp_path / "cache") == []


def test_settings_that_cannot_work(shards, tmp_path, monkeypatch):
    with served(shards) as server:
        with pytest.raises(ConfigError, match=r"data\.s\.shards=.* is a URL.*data\.s\.cache\.folder="):
            open_stream("s", StreamConfig(server.url), 0)
        mix = {"a": MixedConfig(server.url), "b": MixedConfig(str(shards))}
        with pytest.raises(ConfigError, match=r"data\.s\.mix\.a\.shards=.* is a URL.*data\.s\.cache\.folder="):
            open_stream("s", StreamConfig(mix=mix), 0)
        small = CacheConfig(str(tmp_path), 5 * KILOBYTE)
        with pytest.raises(ConfigError, match=r"cannot hold two windows of 1 shards.*Type cache\.gigabytes="):
            open_stream("s", StreamConfig(server.url, window=1, cache=small), 0)
    with pytest.raises(DataError, match="nonsense.*Legal are paths, s3://"):
        index_of("nonsense://x", tmp_path)

    def missing(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(shard_cache.fsspec.core, "url_to_fs", missing)
    with pytest.raises(DataError, match=r"Install s3fs.*megaunigame\[remote\]"):
        index_of("s3://bucket/set", tmp_path)


@pytest.mark.fault("an index in the shard cache is damaged", does="downloads it once more", lost="nothing")
def test_a_damaged_index_in_the_cache_is_downloaded_once_more(shards, tmp_path, caplog):
    with served(shards) as server:
        assert everything(index_of(server.url, tmp_path)) == written(SIZES)
        (damaged,) = tmp_path.rglob("data-000001.idx.json")
        damaged.write_bytes(damaged.read_bytes()[:-9] + b"x" * 9)
        assert everything(index_of(server.url, tmp_path)) == written(SIZES)
        assert server.requests["data-000001.idx.json"] == 2 and server.requests["data-000000.idx.json"] == 1
    assert "data-000001.idx.json is damaged in the cache" in caplog.text


def named(folder: Path, stem: str) -> Path:
    """A folder of one shard with this name."""
    write_shards(folder, [3])
    for path in sorted(folder.glob("data-000000.*")):
        path.rename(folder / path.name.replace("data-000000", stem))
    manifest = folder / "dataset.json"
    manifest.write_text(manifest.read_text().replace("data-000000.tar", f"{stem}.tar"), encoding="utf-8")
    return folder


def test_names_that_a_url_must_quote(tmp_path):
    with served(named(tmp_path / "shards", "né w#1%20")) as server:
        index = index_of(server.url, tmp_path / "cache")
        assert everything(index) == written([3]) and index.name(0) == "né w#1%20.tar"


@pytest.mark.fault(
    "a manifest with names so long that the cache of a node cannot add its endings",
    does="refuses it, naming the name and the limit",
    lost="nothing",
)
@pytest.mark.parametrize("letter", ["n", "é"])
def test_the_longest_names_leave_room_for_every_ending(tmp_path, letter):
    bytes_left = LONGEST_FILE - len(".tar")
    stem = letter * (bytes_left // len(letter.encode()))
    with served(named(tmp_path / "shards", stem)) as server:
        assert everything(index_of(server.url, tmp_path / "cache")) == written([3])
    assert everything(ShardIndex.open(tmp_path / "shards")) == written([3])
    for name, size in ((f"{stem}.tar", MOST_BYTES), (f"{stem}.idx.json", None)):
        for longer in (shard_cache._part_of(Path(name), size), shard_cache._lock_of(Path(name))):
            assert len(longer.name.encode()) <= LONGEST_NAME
    folder = named(tmp_path / "longer", f"{stem}{letter}")
    with served(folder) as server:
        with pytest.raises(DataError, match=rf"a name of 23[45] bytes; at most {LONGEST_FILE} are legal"):
            ShardIndex.open(server.url, 4, ShardCache(tmp_path / "cache", 1, first_pause=0.01))
    assert everything(ShardIndex.open(folder)) == written([3]), "no cache, no endings"


def test_a_local_manifest_leaves_room_for_the_index(tmp_path):
    assert everything(ShardIndex.open(named(tmp_path / "legal", "n" * (LONGEST_LOCAL_FILE - 4)))) == written([3])
    content = json.loads((tmp_path / "legal" / "dataset.json").read_text())
    content["shards"][0]["file"] = "n" * (LONGEST_LOCAL_FILE - 3) + ".tar"
    (tmp_path / "legal" / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"a name of {LONGEST_LOCAL_FILE + 1} bytes; at most {LONGEST_LOCAL_FILE} are legal"):
        ShardIndex.open(tmp_path / "legal")


@pytest.mark.parametrize("length", [250, 251, 255])
def test_a_foreign_tar_with_the_longest_name(tmp_path, length):
    """Without a manifest: only its index has to have room."""
    folder = write_shards(tmp_path, [3], manifest=False, index=False)
    (folder / "data-000000.tar").rename(folder / ("n" * (length - 4) + ".tar"))
    if length == 250:
        assert ShardIndex.open(folder).samples == 3
    else:
        with pytest.raises(DataError, match=r"n\.tar is too long: .* Rename it\.$"):
            ShardIndex.open(folder)
