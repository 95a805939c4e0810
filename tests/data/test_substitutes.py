"""Who takes the place of a bad sample: given by (seed, position, attempt), and by nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megaunigame.config import StreamConfig
from megaunigame.data.loading.loader import MicroBatchLoader
from megaunigame.data.loading.stream import SUBSTITUTES
from megaunigame.data.sources.opening import open_stream
from megaunigame.errors import DataError
from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, StepPlan
from megaunigame.step.rows import UnderstandRow
from tests.data.shard_files import NumberRows, number_batches, stored_cursors, write_shards

SIZES = [5, 3, 7, 4]
ALL = sum(SIZES)
REFUSED = st.sets(st.integers(0, ALL - 1), max_size=8)
PLAN = StepPlan((RowRequest("answer", UNDERSTAND, "s", 2), RowRequest("pixel", GENERATE, "s", 2, shares="answer")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), SIZES, lambda n: {"json": b'{"number": %d}' % n})


def source(folder):
    return open_stream("s", StreamConfig(str(folder), window=2), 3).source


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4 * ALL), st.integers(0, 64)), min_size=1, max_size=30))
def test_the_order_of_requests_does_not_matter(folder, places):
    used, key = source(folder), {}
    for position, attempt in places:
        key[position, attempt] = used.find(position, attempt).key
    for place, found in reversed(key.items()):
        assert source(folder).find(*place).key == found == used.find(*place).key


def test_the_first_substitutes_are_of_the_same_window_and_all_of_the_same_epoch(folder):
    """At every position of four epochs: of one seed, so that no chance is left."""
    used = source(folder)
    order, index = used.order, used.index
    for position in range(4 * ALL):
        keys = {index.key(*order.locate(p)[1:]) for p in order.window_of(position)}
        found = [used.find(position, attempt).key for attempt in range(1 + SUBSTITUTES)]
        assert set(found[:5]) <= keys
        assert len(set(found)) > 2, "another one most times"


class Numbers(NumberRows):
    """Rows without pictures."""

    def row(self, request, sample, rng):
        if sample.meta["number"] in self.refused:
            raise DataError("refused")
        return UnderstandRow(images=[], turns=[(str(sample.meta["number"]), str(int(rng.integers(1 << 30))))])


def batches(folder, refused, accumulation=1, rank=0, ranks=1, cursors=None):
    stream = open_stream("s", StreamConfig(str(folder), window=2), 3, (cursors or {}).get("s"))
    return number_batches(PLAN, {"s": stream}, Numbers(refused=refused), accumulation, rank, ranks)


def rows(batch) -> list[tuple[int, str]]:
    tokens = batch.inputs[UNDERSTAND].tokens.tolist()
    return [(number, key) for (number, _), key in zip(tokens, batch.inputs[UNDERSTAND].keys, strict=True)]


def rows_at(made, micro_step: int) -> list[tuple[int, str]] | None:
    """Of one micro-batch; None where a sample and all its substitutes are refused, which ends a run."""
    try:
        return rows(made[micro_step])
    except DataError as error:
        assert f"and {SUBSTITUTES} substitutes cannot be used" in str(error)
        return None


def step_of(made, step: int, accumulation: int) -> list[list | None]:
    return [rows_at(made, step * accumulation + micro) for micro in range(accumulation)]


def all_tried_at(folder, position: int) -> set[int]:
    """The samples whose refusal ends a run at a position."""
    used = source(folder)
    return {int(used.find(position, attempt).key) for attempt in range(1 + SUBSTITUTES)}


@pytest.mark.fault("bad samples, and a resume on other ranks", does="the same substitutes", lost="the samples")
@settings(max_examples=25, deadline=None)
@given(REFUSED, st.sampled_from([1, 2, 4]), st.integers(0, 6))
def test_substitutes_do_not_depend_on_ranks_or_restarts(folder, refused, ranks, first):
    check_ranks(folder, refused, ranks, first)


def check_ranks(folder, refused, ranks, first) -> list[list | None]:
    """4 micro-steps of 2 rows in a step, over 1, 2 or 4 ranks; also from the cursors of a run of one rank. Returns the rows."""
    seen = []
    alone = batches(folder, refused, 4)
    cursors = stored_cursors(alone.cursors(first))
    divided = [batches(folder, refused, 4 // ranks, rank, ranks, cursors) for rank in range(ranks)]
    for step in range(3):
        expected = step_of(alone, first + step, 4)
        parts = [step_of(made, step, 4 // ranks) for made in divided]
        assert [part for micro in zip(*parts, strict=True) for part in micro] == expected
        seen += expected
    return seen


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_sample_without_a_good_substitute_ends_every_run_at_the_same_row(folder, ranks):
    """Also those on other ranks, and those that were resumed before it."""
    ended = 0
    for position in range(16):
        refused = all_tried_at(folder, position)
        assert rows_at(batches(folder, refused), position // 2) is None
        ended += check_ranks(folder, refused, ranks, 1).count(None)
        check_others(folder, refused, {1, 2})
        check_shared(folder, refused)
    assert ended > 0


@settings(max_examples=40, deadline=None)
@given(REFUSED, st.sets(st.integers(0, ALL - 1), max_size=4))
def test_a_substitute_does_not_depend_on_which_others_are_bad(folder, refused, more):
    check_others(folder, refused, more)


def check_others(folder, refused, more) -> None:
    """A place changes only if what stood there became bad; what ended a run still does."""
    few, many = batches(folder, refused), batches(folder, refused | more)
    for step in range(8):
        before_rows, after_rows = rows_at(few, step), rows_at(many, step)
        if before_rows is None or after_rows is None:
            assert after_rows is None
            continue
        for (before, _), (after, _) in zip(before_rows, after_rows, strict=True):
            assert after == before or before in more
            assert after not in refused | more


@settings(max_examples=40, deadline=None)
@given(REFUSED)
def test_rows_that_share_a_sample_share_its_substitute(folder, refused):
    check_shared(folder, refused)


def check_shared(folder, refused) -> None:
    made = batches(folder, refused)
    for step in (step for step in range(8) if rows_at(made, step) is not None):
        batch = made[step]
        assert batch.inputs[GENERATE].keys == batch.inputs[UNDERSTAND].keys


def test_workers_give_the_same_substitutes(folder):
    refused = {0, 3, 4, 9, 11, 17}
    expected = [rows(batch) for batch in MicroBatchLoader(batches(folder, refused), 0, 24, 0)]
    assert [rows(batch) for batch in MicroBatchLoader(batches(folder, refused), 0, 24, 2)] == expected
