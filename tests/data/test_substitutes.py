"""Who takes the place of a bad sample: given by (seed, position, attempt), and by nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megaunigame.config import StreamConfig
from megaunigame.data.loading.loader import MicroBatchLoader
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


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 4 * ALL))
def test_the_first_substitutes_are_of_the_same_window_and_all_of_the_same_epoch(folder, position):
    order = source(folder).order
    window = {order.locate(p)[1:] for p in order.window_of(position)}
    index = source(folder).index
    keys = {index.key(*place) for place in window}
    found = [source(folder).find(position, attempt).key for attempt in range(9)]
    assert set(found[:5]) <= keys
    assert len(set(found)) > 2, "another one each time, up to chance"


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


def step_of(made, step: int, accumulation: int) -> list[list]:
    return [rows(made[step * accumulation + micro]) for micro in range(accumulation)]


@pytest.mark.fault("bad samples, and a resume on other ranks", does="the same substitutes", lost="the samples")
@settings(max_examples=25, deadline=None)
@given(REFUSED, st.sampled_from([1, 2, 4]), st.integers(0, 6))
def test_substitutes_do_not_depend_on_ranks_or_restarts(folder, refused, ranks, first):
    """4 micro-steps of 2 rows in a step, over 1, 2 or 4 ranks; also from the cursors of a run of one rank."""
    alone = batches(folder, refused, 4)
    cursors = stored_cursors(alone.cursors(first))
    divided = [batches(folder, refused, 4 // ranks, rank, ranks, cursors) for rank in range(ranks)]
    for step in range(3):
        expected = [row for micro in step_of(alone, first + step, 4) for row in micro]
        parts = [step_of(made, step, 4 // ranks) for made in divided]
        assert [row for micro in zip(*parts, strict=True) for part in micro for row in part] == expected


@settings(max_examples=40, deadline=None)
@given(REFUSED, st.sets(st.integers(0, ALL - 1), max_size=4))
def test_a_substitute_does_not_depend_on_which_others_are_bad(folder, refused, more):
    """A place changes only if what stood there became bad."""
    few, many = batches(folder, refused), batches(folder, refused | more)
    for step in range(8):
        for (before, _), (after, _) in zip(rows(few[step]), rows(many[step]), strict=True):
            assert after == before or before in more
            assert after not in refused | more


@settings(max_examples=40, deadline=None)
@given(REFUSED)
def test_rows_that_share_a_sample_share_its_substitute(folder, refused):
    made = batches(folder, refused)
    for step in range(8):
        batch = made[step]
        assert batch.inputs[GENERATE].keys == batch.inputs[UNDERSTAND].keys


def test_workers_give_the_same_substitutes(folder):
    refused = {0, 3, 4, 9, 11, 17}
    expected = [rows(batch) for batch in MicroBatchLoader(batches(folder, refused), 0, 24, 0)]
    assert [rows(batch) for batch in MicroBatchLoader(batches(folder, refused), 0, 24, 2)] == expected
