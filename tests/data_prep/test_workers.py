"""A worker that the kernel kills costs its shard one more attempt, and nothing else."""

from __future__ import annotations

import functools
import json
import os
import signal
import time
from pathlib import Path

import pytest

from data_prep.__main__ import main
from data_prep.shard_writer import Job, Shard, write_dataset
from data_prep.workers import in_processes
from megaunigame.data.shards.index import ShardIndex
from megaunigame.errors import DataError
from tests.data_prep.stored import content, write_whole

SAMPLES = 3
pytestmark = pytest.mark.usefixtures("forked")


def shard(deadly: dict[int, int], folder: Path, number: int) -> Shard:
    """Shard `number` kills its process in its first `deadly[number]` attempts, after a sample is written."""

    def samples():
        for k in range(SAMPLES):
            yield {"__key__": f"{number}-{k}", "json": json.dumps({"caption": "x"}).encode()}
            attempts = len(list(folder.glob(f"{number}.*")))
            if k == 1 and attempts < deadly.get(number, 0):
                (folder / f"{number}.{attempts}").touch()
                os.kill(os.getpid(), signal.SIGKILL)

    return Shard(samples())


def job(folder: Path, deadly: dict[int, int]) -> Job:
    (folder / "attempts").mkdir()
    return Job(folder / "out", "x", {"c": 1}, 6, functools.partial(shard, deadly, folder / "attempts"))


@pytest.mark.fault("a worker of `pack` is killed", does="its shard is made again by a new process", lost="nothing")
def test_a_killed_worker_is_replaced_and_its_shard_written_again(tmp_path, capfd):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    write_whole(job(one, {}))
    statistics = write_dataset(job(two, {1: 1, 5: 1}), workers=2, overwrite=False)
    assert statistics is not None and [stats["samples"] for stats in statistics] == 6 * [SAMPLES]
    said = capfd.readouterr().err
    for number in (1, 5):
        assert f"x-00000{number}: its worker was killed by SIGKILL; it is tried again, the others go on" in said
    ours, theirs = content(one / "out"), content(two / "out")
    assert {name: ours[name] for name in ours if name != "dataset.json"} == {
        name: theirs[name] for name in theirs if name != "unfinished.json"
    }


def test_a_shard_that_kills_twice_ends_the_run_after_the_others(tmp_path):
    with pytest.raises(DataError, match=r"^x-000002: the worker died 2 times; all others are done.*fewer --workers") as error:
        write_dataset(job(tmp_path, {2: 9}), workers=2, overwrite=False)
    assert "\n" not in str(error.value)
    assert len(list((tmp_path / "out").glob("*_stats.json"))) == 5
    with pytest.raises(DataError, match="not finished"):
        ShardIndex.open(tmp_path / "out")
    again = Job(tmp_path / "out", "x", {"c": 1}, 6, functools.partial(shard, {}, tmp_path))
    write_whole(again)
    assert main(["verify", str(tmp_path / "out"), "--workers", "2"]) == 0


def deadly(item: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return item


@pytest.mark.fault("every worker of `pack` is killed", does="ends, says which option to lower", lost="nothing that is done")
def test_workers_that_all_die_end_the_run_soon():
    began = time.monotonic()
    with pytest.raises(DataError, match="6 workers died one after another, the last one was killed by SIGKILL"):
        list(in_processes(deadly, range(1000), 2, str))
    assert time.monotonic() - began < 20


def fails(item: int) -> int:
    if item == 3:
        raise DataError("the third")
    if item == 30:
        raise KeyError("no user error")
    return item


def test_errors_of_the_work_are_raised():
    with pytest.raises(DataError, match="^the third$"):
        list(in_processes(fails, range(10), 2, str))
    with pytest.raises(RuntimeError, match="KeyError: 'no user error'"):
        list(in_processes(fails, [1, 2, 30], 2, str))
    assert sorted(in_processes(fails, [1, 2, 4, 5], 3, str)) == [(k, k) for k in (1, 2, 4, 5)]
    assert list(in_processes(fails, [], 3, str)) == []
