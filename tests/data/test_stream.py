from __future__ import annotations

import dataclasses

import pytest
import torch

from megaunigame.config import StreamConfig
from megaunigame.data.loading.bad_samples import BadSampleCounter, _rows
from megaunigame.data.loading.loader import MicroBatchLoader
from megaunigame.data.loading.stream import MicroBatch, MicroBatches
from megaunigame.data.sources.base import SampleRef
from megaunigame.data.sources.opening import open_stream
from megaunigame.errors import DataError
from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, StepPlan
from megaunigame.step.rotation import ROUND_ROBIN, Rotation
from tests.data.shard_files import NumberCollator, NumberRows, number_batches, overwrite, write_shards

PLAN = StepPlan(
    (
        RowRequest("answer", UNDERSTAND, "scenes", 2),
        RowRequest("pixel", GENERATE, "scenes", 1),
        RowRequest("text", UNDERSTAND, "chat", 1),
    )
)
SIZES = [9, 4, 11, 6, 7]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), SIZES)


def batches(folder, accumulation=1, rank=0, world_size=1, cursors=None, objective=None, plan=PLAN) -> MicroBatches:
    names = sorted({r.stream for r in plan.requests})
    streams = {
        name: open_stream(name, StreamConfig(str(folder), window=2), 3 + i, (cursors or {}).get(name))
        for i, name in enumerate(names)
    }
    return number_batches(plan, streams, objective, accumulation, rank, world_size)


def content(batch: MicroBatch) -> dict:
    """Everything in a micro-batch, in a comparable form."""
    inputs = {n: (x.tokens.tolist(), x.terms.tolist(), x.counts.tolist(), x.keys) for n, x in batch.inputs.items()}
    return {"inputs": inputs, "bad": batch.bad}


def test_rows_are_grouped_by_pass_in_plan_order(folder):
    batch = batches(folder)[0]
    assert list(batch.inputs) == [GENERATE, UNDERSTAND]
    understand = batch.inputs[UNDERSTAND]
    assert understand.terms.tolist() == [0, 0, 2] and batch.inputs[GENERATE].terms.tolist() == [1]
    assert [int(k) for k in understand.keys] == understand.tokens[:, 0].tolist()
    assert batch.bad == []


def test_same_steps_on_more_ranks(folder):
    def step(world: int, number: int) -> list:
        accumulation = 4 // world
        ranks = [batches(folder, accumulation, rank, world) for rank in range(world)]
        micro_steps = range(number * accumulation, (number + 1) * accumulation)
        inputs = [x for m in micro_steps for rank in ranks for x in rank[m].inputs.values()]
        # The random draw of every row is among its tokens.
        return sorted(row for x in inputs for row in zip(x.terms.tolist(), x.tokens.tolist(), strict=True))

    for number in range(3):
        assert step(1, number) == step(2, number) == step(4, number)


@pytest.mark.parametrize(("first", "last"), [(0, 12), (5, 12)])
def test_any_number_of_workers_gives_the_same_sequence(folder, first, last):
    dataset = batches(folder, accumulation=2, rank=1, world_size=2)
    alone = [content(b) for b in MicroBatchLoader(dataset, first, last, workers=0)]
    assert alone == [content(dataset[n]) for n in range(first, last)]
    for workers in (1, 2):
        loader = MicroBatchLoader(dataset, first, last, workers, prefetch=3)
        assert len(loader) == last - first
        assert [content(b) for b in loader] == alone


def test_loading_leaves_the_global_random_state_alone(folder):
    dataset = batches(folder)
    before = torch.get_rng_state()
    for workers in (0, 1):
        list(MicroBatchLoader(dataset, 0, 3, workers))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("backend", ["index", "webdataset"])
def test_rows_that_share_a_sample_read_it_once(folder, backend):
    shared = [RowRequest("again", GENERATE, "s", 3, shares="answer"), RowRequest("third", UNDERSTAND, "s", 3, shares="answer")]
    plan = StepPlan((RowRequest("answer", UNDERSTAND, "s", 3), *shared))
    shards = str(folder) if backend == "index" else f"{folder}/data-{{000000..000004}}.tar"
    stream = open_stream("s", StreamConfig(shards, backend=backend), 3)
    reads = []
    find = stream.source.find

    def counting(position: int, attempt: int) -> SampleRef:
        found = find(position, attempt)
        return dataclasses.replace(found, read=lambda: reads.append(found.key) or found.read())

    stream.source.find = counting
    refused = NumberRows(refused=range(0, sum(SIZES), 4))  # substitutes are shared as well
    dataset = number_batches(plan, {"s": stream}, refused)
    for micro_step in range(8):
        batch = dataset[micro_step]
        keys = batch.inputs[UNDERSTAND].keys
        assert keys[:3] == keys[3:] == batch.inputs[GENERATE].keys
        assert len(reads) == 3 + len(batch.bad), "a sample that rows share is bad once"
        reads.clear()


def shared_batches(folder, rows, plan, micro_steps):
    stream = open_stream("s", StreamConfig(str(folder)), 3)
    objectives = {request.term: rows.get(request.term, NumberRows()) for request in plan.requests}
    dataset = MicroBatches(plan, objectives, {"s": stream}, NumberCollator(), 1, 0, 1, 0, 0)
    return [dataset[micro_step] for micro_step in range(micro_steps)]


def test_rows_in_rotation_may_share_samples(folder):
    """Also where the term that owns the samples rests, and with other counts of dummies."""
    requests = (RowRequest("owner", UNDERSTAND, "s", 2), RowRequest("sharer", GENERATE, "s", 2, shares="owner"))
    plan = StepPlan(requests, (Rotation(("owner", "sharer"), ROUND_ROBIN),))
    for batch in shared_batches(folder, {}, plan, 4):
        real = {name: (inputs.counts > 0).sum().item() for name, inputs in batch.inputs.items()}
        assert sorted(real.values()) == [0, 2]
        assert _rows(batch.plan) == {"s": 2}, "samples are read, whoever owns them"


def test_a_bad_sample_of_one_term_leaves_the_rows_of_others_alone(folder):
    """Rows aside excepted: those stand or fall with the rows whose samples they share."""
    shared = {"count": 3, "shares": "owner"}
    requests = (
        RowRequest("owner", UNDERSTAND, "s", 3),
        RowRequest("sharer", GENERATE, "s", **shared),
        RowRequest("aside", UNDERSTAND, "s", **shared, aside=True),
    )
    refusing = NumberRows(refused=range(0, sum(SIZES), 2))
    seen = set()
    for batch in shared_batches(folder, {"owner": refusing}, StepPlan(requests), 6):
        owner, sharer, aside = batch.inputs[UNDERSTAND], batch.inputs[GENERATE], batch.aside["aside"]
        same = [a == b for a, b in zip(owner.keys, aside.keys, strict=True)]
        assert (sharer.counts > 0).all() and (aside.counts > 0).tolist() == same
        seen |= set(same)
    assert seen == {True, False}, "the cases do not differ"


def test_rows_aside_follow_the_whole_chain_of_shared_samples(folder):
    """The last of a chain is a dummy where the first was replaced: the one between has no picture for it then."""
    aside = {"count": 3, "aside": True}
    requests = (
        RowRequest("owner", UNDERSTAND, "s", 3),
        RowRequest("middle", GENERATE, "s", shares="owner", **aside),
        RowRequest("last", UNDERSTAND, "s", shares="middle", **aside),
    )
    refusing = NumberRows(refused=range(0, sum(SIZES), 2))
    seen = set()
    for batch in shared_batches(folder, {"owner": refusing}, StepPlan(requests), 6):
        middle, last = ((batch.aside[name].counts > 0).tolist() for name in ("middle", "last"))
        assert middle == last
        seen |= set(last)
    assert seen == {True, False}, "the cases do not differ"


def test_rows_without_data_are_dummy_rows(folder):
    batch = batches(folder, objective=NumberRows(empty=range(sum(SIZES))))[0]
    assert batch.inputs[UNDERSTAND].counts.tolist() == [0, 0, 0] and batch.bad == []


TAKING_TURNS = StepPlan(
    (
        RowRequest("answer", UNDERSTAND, "scenes", 2),
        RowRequest("pixel", GENERATE, "scenes", 1, takes_source=True),
        RowRequest("caption", GENERATE, "scenes", 3),
    ),
    (Rotation(("pixel", "caption"), ROUND_ROBIN),),
)


def test_a_resumed_run_goes_on_with_the_turn_it_left(folder):
    # Three turns and two micro-steps a step, so that counting steps instead of micro-steps shows.
    plan = dataclasses.replace(TAKING_TURNS, rotations=(Rotation(("pixel", "caption", "answer"), ROUND_ROBIN),))

    def made(first_step, cursors):
        streams = batches(folder, cursors=cursors, plan=plan).streams
        return number_batches(plan, streams, accumulation=2, first_step=first_step)

    whole = made(0, None)
    resumed = made(1, whole.cursors(1))
    assert [content(whole[2 + micro]) for micro in range(4)] == [content(resumed[micro]) for micro in range(4)]


def test_rows_that_take_turns_keep_their_place_among_the_terms_of_the_run(folder):
    micro_batches = batches(folder, plan=TAKING_TURNS)
    assert [micro_batches[n].inputs[GENERATE].terms.tolist() for n in range(3)] == [[1], [2, 2, 2], [1]]


def test_whether_a_pass_takes_images_is_decided_by_the_plan_of_the_run(folder):
    """While the rows with a source rest, the vision tower runs all the same."""
    seen = []

    class Collator(NumberCollator):
        def collate(self, plan, pass_name, rows, terms, keys):
            seen.append((pass_name, plan.takes_images(GENERATE)))
            return super().collate(plan, pass_name, rows, terms, keys)

    micro_batches = batches(folder, plan=TAKING_TURNS)
    micro_batches.processor = Collator()
    assert micro_batches[0] and micro_batches[1]
    assert seen == [(GENERATE, True), (UNDERSTAND, True)] * 2


def test_every_row_has_randomness_of_its_seed_position_and_term(folder):
    """Also rows of two terms that share their samples."""
    sharing = StepPlan(
        (RowRequest("answer", UNDERSTAND, "scenes", 2), RowRequest("pixel", GENERATE, "scenes", 2, shares="answer"))
    )

    drawn: list[float] = []

    class Drawing(NumberRows):
        def row(self, request, sample, rng):
            drawn.append(float(rng.random()))
            return super().row(request, sample, rng)

    for seed in (3, 4):
        streams = {"scenes": open_stream("scenes", StreamConfig(str(folder), window=2), seed)}
        micro_batches = number_batches(sharing, streams, Drawing())
        assert micro_batches[0] and micro_batches[1]
    assert len(drawn) == len(set(drawn)) == 16


def test_cursor_of_other_data(folder, tmp_path):
    other = write_shards(tmp_path, [3, 4])
    cursors = batches(folder).cursors(2)
    with pytest.raises(DataError, match="'chat'.*shards.*checkpoint.resume=never"):
        batches(other, cursors=cursors)
    moved = {name: dataclasses.replace(c, seed=99) for name, c in cursors.items()}
    with pytest.raises(DataError, match="'chat'.*seed 99.*checkpoint.resume=never"):
        batches(folder, cursors=moved)


@pytest.mark.fault("some samples cannot be used", does="others take their places, also after a resume", lost="the samples")
def test_bad_samples_are_replaced_alike_in_fresh_and_resumed_runs(tmp_path):
    write_shards(tmp_path, SIZES)
    broken = {1: "png", 8: "json", 20: "depth.png", 33: "seg.png"}
    for number, field in broken.items():
        overwrite(tmp_path, number, field)
    refused = NumberRows(refused=[14])
    fresh = batches(tmp_path, objective=refused)
    steps = [content(fresh[n]) for n in range(40)]
    again = batches(tmp_path, objective=refused, cursors=fresh.cursors(11))
    with_workers = MicroBatchLoader(again, 0, 29, workers=2)
    assert [content(b) for b in with_workers] == steps[11:]
    replaced = {int(sample.key) for step in steps for sample in step["bad"]}
    used = {int(key) for step in steps for _, _, _, keys in step["inputs"].values() for key in keys}
    assert replaced == {*broken, 14}
    assert used == set(range(sum(SIZES))) - replaced
    reasons = {int(s.key): s.reason for step in steps for s in step["bad"]}
    assert all(field in reasons[number] for number, field in broken.items())


def test_a_row_that_cannot_be_kept_is_a_bad_sample(folder):
    """Such as an answer longer than a row: another sample takes its place, as for one that cannot be read."""

    class Narrow(NumberCollator):
        def check(self, row, geometry, key):
            if int(row.turns[0][0]) % 5 == 0:
                raise DataError("the answer of 900 tokens does not fit")

    stream = open_stream("s", StreamConfig(str(folder)), 3)
    dataset = number_batches(StepPlan((RowRequest("u", UNDERSTAND, "s", 4),)), {"s": stream})
    dataset.processor = Narrow()
    batches = [dataset[step] for step in range(4)]
    numbers = [number for batch in batches for number in batch.inputs[UNDERSTAND].tokens[:, 0].tolist()]
    assert all(number % 5 for number in numbers) and -1 not in numbers
    bad = [each for batch in batches for each in batch.bad]
    assert bad and all("900 tokens" in each.reason for each in bad)


@pytest.mark.fault("more bad samples than max_bad_fraction", does="stops, names the worst shard", lost="steps since the save")
def test_a_corrupt_shard_ends_the_run(tmp_path):
    write_shards(tmp_path, SIZES)
    for number in range(13, 24):  # all of the third shard
        name = overwrite(tmp_path, number, "png")
    plan = StepPlan(PLAN.requests[:2])
    dataset = batches(tmp_path, plan=plan)
    counter = BadSampleCounter(plan, max_bad_fraction=0.01)
    with pytest.raises(DataError, match=rf"\d\d of \d+ samples.*\d\d of those met by this rank are in {name}"):
        for batch in MicroBatchLoader(dataset, 0, 10_000, workers=1):
            counter.add(batch.plan, batch.bad)
            counter.merge(counter.pending())


@pytest.mark.fault("no sample can be used", does="stops with one message", lost="steps since the save")
@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_usable_ends_the_run_with_one_message(tmp_path, workers):
    write_shards(tmp_path, [3, 2], lambda n: {"json": b"{}", "png": b"not an image"})
    with pytest.raises(DataError, match="substitutes cannot be used") as error:
        list(MicroBatchLoader(batches(tmp_path), 0, 4, workers))
    assert "Traceback" not in str(error.value)


@pytest.mark.fault("a shard is written to under a run", does="stops, names the shard", lost="steps since the save")
def test_a_shard_written_to_under_the_run_ends_it(tmp_path):
    """The file is open and read from: only what comes out of it tells."""
    write_shards(tmp_path, [6])
    dataset = batches(tmp_path)
    assert dataset[0].bad == []
    for number in range(6):
        overwrite(tmp_path, number, "png")
    with pytest.raises(DataError, match=r"data-000000\.tar was replaced or written to while this run reads it"):
        dataset[1]


def test_a_broken_index_is_not_a_bad_sample(tmp_path):
    write_shards(tmp_path, [3, 2])
    (tmp_path / "data-000000.idx.json").write_text("{}")
    with pytest.raises(DataError, match=r"data-000000\.idx\.json .*sha256 differs"):
        list(MicroBatchLoader(batches(tmp_path), 0, 4, workers=1))
