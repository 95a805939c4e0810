"""A shard that disappears under a run: tried again, then the run stops, or others take the places of its samples."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from megaunigame.config import MixedConfig, StreamConfig
from megaunigame.data.loading.loader import MicroBatchLoader
from megaunigame.data.loading.lost_shards import LostShardRule, LostShards
from megaunigame.data.shards import index as shard_index
from megaunigame.data.sources.opening import open_stream
from megaunigame.errors import DataError, Interrupted, LostShard, MissingShard
from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, StepPlan
from tests.data.shard_files import number_batches, write_shards

SIZES = [6, 6, 6]
SUBSTITUTE = LostShardRule(wait=0.0, period=60.0, substitute=True)
PLAN = StepPlan((RowRequest("answer", UNDERSTAND, "s", 2),))
SHARED = StepPlan((*PLAN.requests, RowRequest("pixel", GENERATE, "s", 2, shares="answer")))


class Clock:
    """Time that passes only in sleep."""

    def __init__(self) -> None:
        self.now, self.slept = 1000.0, []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def failing(times: int, shard: str = "a.tar"):
    """Work that raises LostShard so many times."""
    left = [times]

    def work() -> str:
        if left[0]:
            left[0] -= 1
            raise LostShard(f"{shard} is gone.", shard)
        return "read"

    return work


def lost_shards(wait=100.0, period=1000.0, substitute=True):
    clock = Clock()
    return LostShards(LostShardRule(wait, period, substitute), clock, clock.sleep), clock


@pytest.mark.fault("a shard cannot be read for a while", does="tries again with back-off, then goes on", lost="nothing")
def test_a_shard_that_comes_back_is_read(caplog):
    lost, clock = lost_shards()
    assert lost.reach("s", failing(3)) == "read"
    assert sum(clock.slept) == 7
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "Stream s: a.tar is gone. Trying again for 100 s." and "for 97 s" in said[2]
    assert said[-1] == "Stream s: a.tar is back."


def test_pauses_are_bounded_and_end_in_time(caplog):
    lost, clock = lost_shards(wait=100)
    with pytest.raises(LostShard):
        lost.reach("s", failing(99))
    left = [int(record.getMessage().split()[-2]) for record in caplog.records if "Trying again" in record.getMessage()]
    assert left == [100, 99, 97, 93, 85, 69, 39, 9] and sum(clock.slept) == 100


@pytest.mark.parametrize("substitute", [True, False])
def test_a_run_that_was_asked_to_stop_does_not_wait(substitute):
    lost, clock = lost_shards(substitute=substitute)
    lost.stopping = lambda: clock.now >= 1010
    with pytest.raises(Interrupted):
        lost.reach("s", failing(99))
    assert sum(clock.slept) == 10
    assert lost.reach("s", failing(0)) == "read", "it is not a lost shard, and what can be read still is"


def test_stop_says_what_to_type():
    lost, _ = lost_shards(substitute=False)
    with pytest.raises(
        MissingShard, match=r"'s': a.tar is gone. It was tried again for 100 s.*loader.lost_shard=substitute"
    ) as e:
        lost.reach("s", failing(99))
    assert not isinstance(e.value, LostShard), "it ends the run, nobody takes its samples' places"


def test_one_wait_in_a_period_however_many_shards_are_lost():
    """Other ranks wait for this one: their patience is the period."""
    lost, clock = lost_shards()
    for shard in ("a.tar", "b.tar", "a.tar", "c.tar"):
        with pytest.raises(LostShard, match=shard):
            lost.reach("s", failing(99, shard))
    assert sum(clock.slept) == 100
    clock.now += 900
    with pytest.raises(LostShard):
        lost.reach("s", failing(99, "d.tar"))
    assert sum(clock.slept) == 200, "a new period, a new shard"
    clock.now += 1000
    with pytest.raises(LostShard):
        lost.reach("s", failing(99, "a.tar"))
    assert sum(clock.slept) == 200, "a shard that is known to be lost is never waited for again"
    assert lost.reach("s", failing(0)) == "read"


def test_only_the_seconds_of_a_wait_are_charged():
    lost, clock = lost_shards(wait=540, period=1800, substitute=False)
    assert lost.reach("s", failing(3)) == "read" and sum(clock.slept) == 7
    clock.now += 1000
    assert lost.reach("s", failing(4, "b.tar")) == "read" and sum(clock.slept) == 22
    with pytest.raises(DataError, match="tried again for 518 s"):
        lost.reach("s", failing(99, "c.tar"))
    assert sum(clock.slept) == 540
    with pytest.raises(DataError, match="tried again for 0 s"):
        lost.reach("s", failing(99, "d.tar"))
    clock.now += 1270
    with pytest.raises(DataError, match="tried again for 22 s"):  # the first two waits began more than a period ago
        lost.reach("s", failing(99, "e.tar"))
    assert sum(clock.slept) == 562


def dataset(folder: Path, rule: LostShardRule, plan: StepPlan = PLAN, **options):
    stream = open_stream("s", StreamConfig(str(folder), window=1), 3)
    made = number_batches(plan, {"s": stream}, **options)
    made.lost_shards = LostShards(rule)
    return made


def numbers(batch) -> list[int]:
    return batch.inputs[UNDERSTAND].tokens[:, 0].tolist()


def removed(folder: Path, shard: int = 1) -> range:
    """Remove a shard and its index; returns the numbers of its samples."""
    for path in folder.glob(f"data-{shard:06d}.*"):
        path.unlink()
    return range(6 * shard, 6 * shard + 6)


@pytest.mark.fault(
    "a shard is deleted under a run, loader.lost_shard=substitute",
    does="samples of other shards take the places of its samples; it is named once, and counted",
    lost="the shard's samples",
)
@pytest.mark.parametrize("workers", [0, 2])
def test_substitutes_come_from_other_shards_and_no_other_row_moves(tmp_path, workers):
    write_shards(tmp_path, SIZES)
    whole = [numbers(batch) for batch in MicroBatchLoader(dataset(tmp_path, SUBSTITUTE), 0, 18, 0)]
    with_hole = dataset(tmp_path, SUBSTITUTE)
    gone = removed(tmp_path)
    batches = list(MicroBatchLoader(with_hole, 0, 18, workers))
    for before, batch in zip(whole, batches, strict=True):
        for was, now in zip(before, numbers(batch), strict=True):
            assert now not in gone and (was in gone or now == was)
    bad = [sample for batch in batches for sample in batch.bad]
    assert {(b.shard, b.key, b.lost) for b in bad} == {("data-000001.tar", "", True)}
    assert len({b.position for b in bad}) == sum(number in gone for rows in whole for number in rows) == 12


@pytest.mark.fault(
    "a run resumes while a shard is still lost, also on other ranks",
    does="the same substitutes stand at the same positions",
    lost="nothing more",
)
def test_a_resumed_run_and_other_ranks_have_the_same_substitutes(tmp_path):
    write_shards(tmp_path, SIZES)
    alone = dataset(tmp_path, SUBSTITUTE, accumulation=2)
    pair = [dataset(tmp_path, SUBSTITUTE, rank=rank, world_size=2) for rank in (0, 1)]
    removed(tmp_path)
    steps = [numbers(alone[2 * step]) + numbers(alone[2 * step + 1]) for step in range(9)]
    assert steps == [[n for rank in pair for n in numbers(rank[step])] for step in range(9)]


def test_a_shard_that_comes_back_is_read_again_and_changes_only_its_own_rows(tmp_path):
    write_shards(tmp_path / "there", SIZES)
    made = dataset(tmp_path / "there", SUBSTITUTE)
    shutil.copytree(tmp_path / "there", tmp_path / "kept")
    whole = [numbers(made[step]) for step in range(9)]
    made = dataset(tmp_path / "there", SUBSTITUTE)
    gone = removed(tmp_path / "there")
    with_hole = [numbers(made[step]) for step in range(9)]
    assert with_hole != whole
    for path in (tmp_path / "kept").glob("data-000001.*"):
        shutil.copy2(path, tmp_path / "there")
    assert [numbers(made[step]) for step in range(9)] == whole
    for was, now in zip(whole, with_hole, strict=True):
        assert [n for n in was if n not in gone] == [y for x, y in zip(was, now, strict=True) if x not in gone]


def test_rows_that_share_a_sample_stay_together_when_its_shard_comes_back_between_them(tmp_path):
    write_shards(tmp_path / "there", SIZES)
    shutil.copytree(tmp_path / "there", tmp_path / "kept")
    made = dataset(tmp_path / "there", SUBSTITUTE, SHARED)
    gone = removed(tmp_path / "there")
    source = made.streams["s"].source
    find, asked = source.find, []

    def comes_back(position: int, attempt: int):
        asked.append((position, attempt))
        try:
            return find(position, attempt)
        finally:
            for path in (tmp_path / "kept").glob("data-000001.*"):
                shutil.copy2(path, tmp_path / "there")

    source.find = comes_back
    replaced = 0
    for step in range(9):
        removed(tmp_path / "there")
        source.index._opened.clear()
        batch = made[step]
        assert batch.inputs[GENERATE].keys == batch.inputs[UNDERSTAND].keys
        replaced += len(batch.bad)
    assert replaced and len(asked) == len(set(asked)), "each place is looked at once"
    assert gone


def test_stop_is_the_default_and_names_the_shard(tmp_path):
    write_shards(tmp_path, SIZES)
    made = dataset(tmp_path, LostShardRule(wait=0.0, period=60.0, substitute=False))
    removed(tmp_path)
    with pytest.raises(DataError, match=r"data-000001\.(tar|idx\.json) can no longer be .*No such file"):
        list(MicroBatchLoader(made, 0, 9, workers=1))


@pytest.mark.fault("all shards are gone", does="stops, with the last of them named", lost="steps since the last save")
def test_all_shards_lost_end_the_run_without_waiting_for_each(tmp_path):
    write_shards(tmp_path, SIZES)
    made = dataset(tmp_path, SUBSTITUTE)
    for shard in range(3):
        removed(tmp_path, shard)
    with pytest.raises(DataError, match="sample 0 and 64 substitutes cannot be used"):
        made[0]


def broken_reads(monkeypatch, code: int, begins: bool) -> list[int]:
    """Reads of the shards' files fail with `code`; the first block can be read if `begins`."""
    reads, real = [], os.pread

    def pread(handle: int, length: int, start: int) -> bytes:
        if begins and start == 0 and length == 512:
            return real(handle, length, start)
        reads.append(start)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(shard_index.os, "pread", pread)
    return reads


@pytest.mark.fault("a sector of a shard cannot be read (EIO)", does="that sample is replaced", lost="the sample")
def test_a_bad_sector_is_a_bad_sample(tmp_path, monkeypatch):
    write_shards(tmp_path, SIZES)
    index = shard_index.ShardIndex.open(tmp_path)
    reads = broken_reads(monkeypatch, errno.EIO, begins=True)
    with pytest.raises(OSError, match="Input/output error"):
        index.read(0, 1)
    assert len(reads) == 2, "once more with a file that is opened again"


@pytest.mark.parametrize(("code", "begins"), [(errno.EIO, False), (errno.ESTALE, True), (errno.ENOTCONN, False)])
def test_a_file_system_that_is_away_is_a_lost_shard(tmp_path, monkeypatch, code, begins):
    write_shards(tmp_path, SIZES)
    index = shard_index.ShardIndex.open(tmp_path)
    with monkeypatch.context() as patch:
        broken_reads(patch, code, begins)
        with pytest.raises(LostShard, match=r"data-000000\.tar can no longer be read") as error:
            index.read(0, 1)
    assert error.value.shard == "data-000000.tar"
    assert index.read(0, 1)[0] == "0000001", "it is opened again when it is back"


def test_a_stale_handle_is_replaced(tmp_path, monkeypatch):
    """As after a network file system was mounted again: old handles stay broken."""
    write_shards(tmp_path, SIZES)
    index = shard_index.ShardIndex.open(tmp_path)
    index.read(0, 1)
    kept, real = index._opened[0], os.pread  # it stays open, so that the new file has another number

    def pread(handle: int, length: int, start: int) -> bytes:
        if handle == kept.file.fileno():
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(handle, length, start)

    monkeypatch.setattr(shard_index.os, "pread", pread)
    assert index.read(0, 1)[0] == "0000001" and index._opened[0] is not kept


def test_a_lost_shard_of_a_mix_has_the_name_of_its_data_set(tmp_path):
    for name in ("one", "two"):
        write_shards(tmp_path / name, [3])
    mix = {name: {"shards": str(tmp_path / name)} for name in ("one", "two")}
    stream = open_stream("s", StreamConfig(mix={name: MixedConfig(**part) for name, part in mix.items()}), 3)
    made = number_batches(PLAN, {"s": stream})
    made.lost_shards = LostShards(SUBSTITUTE)
    for path in (tmp_path / "one").glob("data-*"):
        path.unlink()
    with pytest.raises(DataError, match=r"The last, in one/data-000000\.tar"):
        for step in range(4):
            made[step]
