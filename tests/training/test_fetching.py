"""Data that one rank cannot fetch, and the list of what was replaced."""

from __future__ import annotations

import errno
import json
from functools import partial
from types import SimpleNamespace

import pytest

from megaunigame.data.loading.bad_samples import BadSample, BadSampleCounter
from megaunigame.errors import DataError, Interrupted, TransientError, UserError
from megaunigame.step.requests import UNDERSTAND, RowRequest, StepPlan
from megaunigame.training import quarantine as quarantine_module
from megaunigame.training.fetching import Fetcher
from megaunigame.training.quarantine import Quarantine
from tests.worlds import OneRank, on_ranks


def bad(key: str, shard: str = "a.tar", position: int = 7) -> BadSample:
    return BadSample("s", key, shard, f"{key or shard} is broken.", position, lost=not key)


def batch(*samples: BadSample):
    return SimpleNamespace(bad=list(samples))


def fetcher(world, folder, finish=lambda: None) -> Fetcher:
    return Fetcher(world, Quarantine(folder, world, fresh=True), finish)


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]


def breaking(*batches, error: Exception):
    yield from batches
    raise error


@pytest.mark.fault("one rank cannot fetch its data", does="every rank raises it, none waits", lost="steps since the last save")
def test_a_fetch_that_fails_on_one_rank_fails_on_all(tmp_path):
    def work(world):
        data = breaking(batch(), error=DataError("no substitute")) if world.rank else iter([batch(), batch()])
        fetching = fetcher(world, tmp_path, lambda: world.calls.append(("the pending save", 1)))
        batches, waited = fetching.fetch(data, 2)
        assert waited >= 0 and len(batches) == (0 if world.rank else 2)
        with pytest.raises(DataError, match=r"^Rank 1 \(.*\): no substitute$"):
            fetching.agree(1, batches)
        return world.calls

    calls = on_ranks(2, work)
    assert calls[0] == calls[1] == [("bounds", 3), ("the pending save", 1)]


def test_a_fetch_that_one_rank_leaves_is_left_by_all(tmp_path):
    def work(world, *, broken: bool):
        data = breaking(error=Interrupted("left")) if world.rank else iter([batch()])
        fetching = fetcher(world, tmp_path)
        if broken and world.is_main:
            fetching.failed = DataError("no substitute")
        batches, _ = fetching.fetch(data, 1)
        with pytest.raises(DataError if broken else Interrupted, match="^Rank 0 .* no substitute$" if broken else "step 4"):
            fetching.agree(4, batches)

    for broken in (False, True):
        on_ranks(2, partial(work, broken=broken))


def test_data_that_ends_early_is_an_error_too(tmp_path):
    fetching = fetcher(OneRank(), tmp_path)
    batches, _ = fetching.fetch(iter([]), 1)
    with pytest.raises(StopIteration):
        fetching.agree(1, batches)


def test_an_error_between_steps_is_raised_at_the_next_fetch(tmp_path):
    def work(world):
        fetching = fetcher(world, tmp_path)
        fetching.failed = OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl") if world.is_main else None
        batches, _ = fetching.fetch(iter([batch()]), 1)
        with pytest.raises(OSError if world.is_main else UserError, match="No space left on device.*metrics.jsonl"):
            fetching.agree(1, batches)

    on_ranks(2, work)


@pytest.mark.fault("samples that cannot be used", does="lists each once in quarantine.jsonl", lost="the samples")
def test_bad_samples_of_all_ranks_are_listed_once(tmp_path):
    mine = {0: [bad("x"), bad("y")], 1: [bad("x", position=99), bad("", "b.tar")]}

    def work(world):
        fetching = fetcher(world, tmp_path)
        for step in (1, 2):
            batches, _ = fetching.fetch(iter([batch(), batch(*mine[world.rank])]), 2)
            fetching.agree(step, batches)
        batches, _ = fetching.fetch(iter([batch(bad("z", position=50))] if world.rank else [batch()]), 1)
        fetching.agree(3, batches)

    on_ranks(2, work)
    assert [(line["step"], line["shard"], line["key"], line["position"]) for line in lines(tmp_path)] == [
        (1, "a.tar", "x", 7),
        (1, "a.tar", "y", 7),
        (1, "b.tar", "", 7),
        (3, "a.tar", "z", 50),
    ]
    assert lines(tmp_path)[0] == {
        **{"step": 1, "stream": "s", "shard": "a.tar", "key": "x", "position": 7},
        "reason": "x is broken.",
    }


def test_no_collective_and_no_file_without_bad_samples(tmp_path):
    def work(world):
        fetching = fetcher(world, tmp_path)
        fetching.agree(1, fetching.fetch(iter([batch()]), 1)[0])
        return world.calls

    assert on_ranks(2, work) == 2 * [[("bounds", 3)]]
    assert not (tmp_path / "quarantine.jsonl").exists()


def test_a_resumed_run_adds_to_the_list(tmp_path):
    Quarantine(tmp_path, OneRank(), fresh=True).add(4, [bad("x")])
    with open(tmp_path / "quarantine.jsonl", "a") as file:
        file.write('{"step": 5, "stream": "s", "sha')  # the power failed
    resumed = Quarantine(tmp_path, OneRank(), fresh=False)
    resumed.add(3, [bad("x"), bad("y")])
    assert [(line["step"], line["key"]) for line in lines(tmp_path)] == [(4, "x"), (3, "y")]
    Quarantine(tmp_path, OneRank(), fresh=True).add(1, [bad("z")])
    assert [line["key"] for line in lines(tmp_path)] == ["z"], "another run in the same folder"


def test_the_list_is_bounded(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(quarantine_module, "MOST", 3)
    listed = Quarantine(tmp_path, OneRank(), fresh=True)
    for step in range(3):
        listed.add(step, [bad(f"{step}-{k}") for k in range(2)])
    assert [line["key"] for line in lines(tmp_path)] == ["0-0", "0-1", "1-0"]
    assert [record.getMessage() for record in caplog.records if "is full" in record.getMessage()]


@pytest.mark.fault("the disk is full", does="ends all ranks, with one line that names file and disk", lost="nothing saved")
def test_a_list_that_cannot_be_written_ends_all_ranks(tmp_path):
    (tmp_path / "file").touch()

    def work(world):
        listed = Quarantine(tmp_path / "file" / "run", world, fresh=True)
        with pytest.raises(OSError if world.is_main else TransientError, match="quarantine.jsonl"):
            listed.add(1, [bad("x")])

    on_ranks(2, work)


def test_too_many_bad_samples_of_another_rank_are_named_on_rank_0(tmp_path):
    plan = StepPlan((RowRequest("answer", UNDERSTAND, "s", 2),))

    def work(world):
        fetching, counter = fetcher(world, tmp_path), BadSampleCounter(plan, 0.0)
        counter.elsewhere = fetching.quarantine.last
        samples = [bad("x")] if world.rank else []
        fetching.agree(1, [batch(*samples)])
        counter.add(plan, samples)
        with pytest.raises(DataError, match=r"x of a\.tar: x is broken" if world.is_main else r"in a\.tar: x is broken"):
            counter.merge([4, 1])

    on_ranks(2, work)
