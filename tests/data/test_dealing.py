"""Rows dealt by cost: nobody is lost, nobody is overloaded, and nothing but the place of a row changes."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaunigame.config import LoaderConfig, MixedConfig, StreamConfig
from megaunigame.data.decode import decode_sample
from megaunigame.data.loading.dealing import Dealer, Dealing, deal
from megaunigame.data.loading.loader import MicroBatchLoader
from megaunigame.data.loading.positions import StreamPositions
from megaunigame.data.sources.opening import check_measured, open_stream
from megaunigame.errors import ConfigError
from megaunigame.settings import check_values
from megaunigame.step.amounts import Amounts
from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, StepPlan
from megaunigame.step.rotation import ROUND_ROBIN, Rotation
from tests.data.shard_files import NumberRows, encoded, number_batches, stored_cursors, talk, write_shards
from tests.data.test_positions import plans, positions_of_step

SIZES = [9, 4, 11, 6, 7]


def loads_of(costs: list[int], rank_of: np.ndarray, ranks: int) -> list[int]:
    return [sum(cost for cost, at in zip(costs, rank_of, strict=True) if at == rank) for rank in range(ranks)]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=7), st.integers(1, 3))
def test_nearly_as_even_as_it_can_be(costs, ranks):
    """Within the bound of longest-first scheduling (Graham 1969) of the best of all dealings."""
    rank_of = deal(np.array(costs), np.zeros(ranks, np.int64), len(costs))
    every = itertools.product(range(ranks), repeat=len(costs))
    best = min(max(loads_of(costs, np.array(each), ranks)) for each in every)
    assert max(loads_of(costs, rank_of, ranks)) <= (4 - 1 / ranks) / 3 * best


@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 3), st.data())
def test_no_rank_gets_more_than_its_places_or_than_rows_of_full_length(ranks, count, spare, data):
    costs = data.draw(st.lists(st.integers(0, 2048), min_size=ranks * count, max_size=ranks * count))
    rank_of = deal(np.array(costs), np.zeros(ranks, np.int64), count + spare)
    assert rank_of.min() >= 0 and rank_of.max() < ranks
    assert max(Counter(rank_of.tolist()).values()) <= count + spare
    assert max(loads_of(costs, rank_of, ranks)) <= count * max(costs)


@pytest.mark.parametrize(("ranks", "count"), [(32, 4), (128, 4), (24, 9)])
def test_the_slowest_rank_is_close_to_the_mean(ranks, count):
    rng = np.random.default_rng(0)
    costs = np.minimum(2048, 606 + rng.lognormal(np.log(170), 0.95, ranks * count)).astype(np.int64)
    loads = loads_of(costs.tolist(), deal(costs, np.zeros(ranks, np.int64), count + -(-count // 4)), ranks)
    assert max(loads) < 1.02 * np.mean(loads)
    assert costs.reshape(ranks, count).sum(1).max() > 1.2 * np.mean(loads), "dealt in their order they are far apart"


def test_what_ranks_have_already_is_evened_out():
    rank_of = deal(np.array([5, 5, 5, 5]), np.array([10, 0, 0]), 4)
    assert sorted(rank_of.tolist()) == [1, 1, 2, 2]
    moved = deal(np.array([1, 14, 23, 11, 1, 20]), np.array([53, 23]), 4)
    assert max(Counter(moved.tolist()).values()) == 4, "items that are moved afterwards need a place too"


def test_dealings_that_differ_have_other_digests():
    """In the term, in who gets a position, and in which it is."""
    one, two = np.array([3, 4]), np.array([5])
    dealings = [
        {"a": [one, two]},
        {"b": [one, two]},
        {"a": [two, one]},
        {"a": [np.array([3]), np.array([4, 5])]},
        {"a": [one, one]},
    ]
    assert len({Dealing(each).digest for each in dealings}) == len(dealings)
    assert Dealing({"a": [one.copy(), two.copy()]}).digest == Dealing(dealings[0]).digest


# Positions


def amounts(stream: str, positions: range) -> Amounts:
    """Pictures as a made-up function of the position."""
    found = Amounts.empty(len(positions))
    found.pictures[:] = [(ord(stream) * (p // 2) ** 3 + p % 7) % 41 for p in positions]
    return found


def lengths(request: RowRequest, amounts: Amounts) -> np.ndarray:
    return amounts.pictures * (3 if request.pass_name == UNDERSTAND else 1) + 2


def dealer(plan: StepPlan, accumulation: int, ranks: int, first: int = 0) -> Dealer:
    return Dealer(StreamPositions(plan, accumulation, ranks), lambda micro_step: plan.at(first + micro_step, 4), lengths)


ROTATIONS = st.sampled_from([(), (Rotation(("term0", "term1"), ROUND_ROBIN),)])


@given(plan=plans(), world=st.integers(1, 4), accumulation=st.integers(1, 3), step=st.integers(0, 5))
def test_every_position_of_a_step_is_dealt_once(plan, world, accumulation, step):
    plan, base = plan.with_spare_places(), dict.fromkeys("ab", 11)
    made = dealer(plan, accumulation, world)
    dealings = [made.dealing(step * accumulation + micro, base, amounts) for micro in range(accumulation)]
    again = dealer(plan, accumulation, world).dealing((step + 1) * accumulation - 1, base, amounts)
    assert again.digest == dealings[-1].digest, "every rank finds the same one, whatever it found before"
    after = (step + 1) * accumulation
    fresh = dealer(plan, accumulation, world).dealing(after, base, amounts)
    assert made.dealing(after, base, amounts).digest == fresh.digest
    for request in plan.requests:
        taken = [dealing.of(request, rank) for dealing in dealings for rank in range(world)]
        assert {len(places) for places in taken} == {request.places}
        found = [position for places in taken for position in places if position is not None]
        assert sorted(found) == sorted(positions_of_step(made.positions, request, step, 11))
        if request.shares is not None:
            owner = next(r for r in plan.requests if r.term == request.shares)
            assert taken == [dealing.of(owner, rank) for dealing in dealings for rank in range(world)]


def test_a_run_that_goes_on_deals_as_one_that_never_stopped():
    plan = StepPlan((RowRequest("u", UNDERSTAND, "a", 3), RowRequest("g", GENERATE, "b", 2))).with_spare_places()
    one, other = dealer(plan, 2, 3), dealer(plan, 2, 3, first=10)
    after = {stream: 5 * one.positions.per_step(stream) for stream in "ab"}
    for micro_step in range(4):
        whole = one.dealing(10 + micro_step, dict.fromkeys("ab", 0), amounts)
        assert whole.digest == other.dealing(micro_step, after, amounts).digest


def test_terms_at_rest_keep_their_positions():
    requests = (RowRequest("u", UNDERSTAND, "a", 2), RowRequest("v", UNDERSTAND, "a", 1), RowRequest("w", UNDERSTAND, "b", 3))
    plan = StepPlan(requests, (Rotation(("u", "w"), ROUND_ROBIN),)).with_spare_places()
    made = dealer(plan, 3, 2)
    dealings = [made.dealing(micro_step, dict.fromkeys("ab", 0), amounts) for micro_step in range(3)]
    assert [set(dealing.positions) for dealing in dealings] == [{"u", "v"}, {"v", "w"}, {"u", "v"}]
    found = sorted(p for m in (0, 2) for rank in (0, 1) for p in dealings[m].positions["u"][rank])
    assert found == [p for m in (0, 2) for p in made.positions.of_all_ranks(plan.requests[0], m, 0)]


def test_terms_that_cannot_be_evened_out_are_dealt_first():
    """A term without spare places has its rows on every rank; one that has some gives more to ranks with the shorter of these.
    Whatever the order in the plan, also where rows of two terms are made of the same samples."""
    fixed = RowRequest("fixed", UNDERSTAND, "a", 1)
    free = RowRequest("free", UNDERSTAND, "b", 4)
    twice = RowRequest("twice", UNDERSTAND, "b", 4, shares="free")
    costs = {"a": [90, 10], "b": [10] * 8}

    def known(stream: str, positions: range) -> Amounts:
        found = Amounts.empty(len(positions))
        found.pictures[:] = [costs[stream][p] for p in positions]
        return found

    for requests, cost in (((free, fixed), 10), ((fixed, free), 10), ((free, twice, fixed), 20)):
        plan = StepPlan(tuple(r if r is fixed else dataclasses.replace(r, places=8) for r in requests))
        made = Dealer(
            StreamPositions(plan, 1, 2), lambda micro_step, plan=plan: plan, lambda request, amounts: amounts.pictures
        )
        dealt = made.dealing(0, dict.fromkeys("ab", 0), known).positions
        loads = [sum(costs["a"][p] for p in dealt["fixed"][rank]) + cost * len(dealt["free"][rank]) for rank in range(2)]
        assert sorted(map(len, dealt["free"])) == ([0, 8] if cost == 10 else [2, 6]), loads


def test_rows_of_like_length_are_in_one_micro_step():
    plan = StepPlan((RowRequest("u", UNDERSTAND, "a", 1),)).with_spare_places()
    made, ranks = dealer(plan, 8, 16), range(16)
    costs = []
    for micro_step in range(8):
        taken = made.dealing(micro_step, {"a": 0}, amounts).positions["u"]
        costs.append([lengths(plan.requests[0], amounts("a", range(p, p + 1)))[0] for r in ranks for p in taken[r]])
    descending = sorted(costs, key=sum, reverse=True)
    assert all(min(longer) >= max(shorter) for longer, shorter in itertools.pairwise(descending))
    assert costs != descending, "who looks at the first micro-step alone would see the longest rows"


# Plans


def test_who_gets_spare_places():
    kept = [
        RowRequest("drawn", GENERATE, "s", 4),
        RowRequest("replayed", UNDERSTAND, None, 4),
        RowRequest("owner", UNDERSTAND, "s", 4),
        RowRequest("sharing", GENERATE, "s", 4, shares="owner"),
        RowRequest("prepared", UNDERSTAND, "s", 4, aside=True),
    ]
    asked = [RowRequest("five", UNDERSTAND, "s", 5), RowRequest("one", UNDERSTAND, "s", 1)]
    plan = StepPlan((*kept, *asked)).with_spare_places()
    assert [r.places for r in plan.requests] == [4, 4, 4, 4, 4, 7, 2]
    assert [r.count for r in plan.requests] == [4, 4, 4, 4, 4, 5, 1]
    assert plan.rows(UNDERSTAND) == 4 + 4 + 7 + 2 and plan.rows_per_micro_step() == 22
    assert plan.rows_at(UNDERSTAND, "one") == slice(15, 17)
    rotating = dataclasses.replace(plan, rotations=(Rotation(("five", "owner"), ROUND_ROBIN),))
    assert rotating.at(0, 0).rows_at(UNDERSTAND, "five") == slice(4, 11)


# Samples


def words(number: int) -> dict[str, bytes]:
    """Texts of very different lengths, and none to three pictures."""
    rng = np.random.default_rng(number)
    said = talk(("Q" * int(rng.integers(1, 40)), "A" * int(rng.integers(1, 400) * (9 if number % 5 == 0 else 1))))
    fields = {"json": json.dumps({"number": number, "conversations": said}).encode()}
    for place in range(number % 4):
        name = "png" if place == 0 else f"picture{place + 1}.png"
        fields[name] = encoded(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return fields


def numbers(number: int) -> dict[str, float]:
    if number % 3 == 0:
        return {}
    return {"conversation_characters": number + 0.0, "conversation_pairs": 2.0, "caption_characters": 3.0 * number}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), SIZES, words, columns=numbers)


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("scanned"), SIZES[:3], words, index=False, manifest=False)


def configs(folder, scanned) -> dict[str, StreamConfig]:
    part = MixedConfig(str(folder), weight=3, window=2, where=["has png"])
    return {
        "plain": StreamConfig(str(folder), window=2),
        "scanned": StreamConfig(str(scanned), window=2),
        "filtered": StreamConfig(str(folder), window=1, where=["has picture2.png"]),
        "mixed": StreamConfig(mix={"some": part, "other": MixedConfig(str(scanned), weight=2)}),
    }


@pytest.mark.parametrize("kind", ["plain", "scanned", "filtered", "mixed"])
def test_amounts_are_those_of_the_samples(folder, scanned, kind):
    """Read one by one, over epochs and windows."""
    source = open_stream("s", configs(folder, scanned)[kind], 3).source
    for positions in (range(0, 90), range(31, 44), range(7, 8), range(5, 5)):
        found = source.amounts(positions, "")
        assert len(found) == len(positions)
        for at, position in enumerate(positions):
            ref = source.find(position, 0)
            fields = ref.read()
            sample = decode_sample(ref.key, fields)
            stored = {} if kind == "scanned" or "other" in ref.shard else numbers(sample.meta["number"])
            assert found.pictures[at] == sample.image_count
            assert found.json_bytes[at] == len(fields["json"])
            columns = [found.conversation[at], found.pairs[at], found.caption[at]]
            want = [stored.get(name, np.nan) for name in numbers(1)]
            assert np.array_equal(columns, want, equal_nan=True)


PLAN = StepPlan(
    (
        RowRequest("answer", UNDERSTAND, "s", 3),
        RowRequest("pixel", GENERATE, "t", 2),
        RowRequest("same", UNDERSTAND, "t", 2, shares="pixel"),
    )
).with_spare_places()


def micro_batches(folder, accumulation, rank, ranks, cursors=None, first=0, balance=True, refused=(), plan=PLAN):
    streams = {
        name: open_stream(name, StreamConfig(str(folder), window=2), seed, (cursors or {}).get(name))
        for name, seed in (("s", 3), ("t", 4))
    }
    rows = NumberRows(refused=refused, empty=[n for n in range(sum(SIZES)) if n % 4 == 0])
    return number_batches(plan, streams, rows, accumulation, rank, ranks, first, balance=balance)


def rows_of(batches) -> Counter:
    """Term, number of the sample and random draw of every real row."""
    return Counter(
        (term, *tokens)
        for batch in batches
        for inputs in batch.inputs.values()
        for term, tokens in zip(inputs.terms.tolist(), inputs.tokens.tolist(), strict=True)
        if tokens[0] >= 0
    )


def step_of(folder, number, accumulation, ranks, **more):
    every = [micro_batches(folder, accumulation, rank, ranks, **more) for rank in range(ranks)]
    micro_steps = range(number * accumulation, (number + 1) * accumulation)
    return [each[m] for m in micro_steps for each in every]


@pytest.mark.parametrize("refused", [(), (5, 6, 17)])
def test_the_rows_of_a_step_are_those_without_dealing_at_any_split(folder, refused):
    for number in (0, 3):
        plain = step_of(folder, number, 4, 1, balance=False, refused=refused)
        replaced = Counter(sample.position for batch in plain for sample in batch.bad)
        for accumulation, ranks in ((4, 1), (1, 4), (2, 2)):
            dealt = step_of(folder, number, accumulation, ranks, refused=refused)
            assert rows_of(dealt) == rows_of(plain)
            assert Counter(sample.position for batch in dealt for sample in batch.bad) == replaced
            assert len({batch.dealing for batch in dealt}) == accumulation
            assert {len(batch.inputs[UNDERSTAND].keys) for batch in dealt} == {4 + 2}


def test_a_resumed_run_and_any_number_of_workers_give_the_same_micro_batches(folder):
    def content(batch):
        return {name: (x.tokens.tolist(), x.keys) for name, x in batch.inputs.items()}, batch.bad, batch.dealing

    whole = micro_batches(folder, 2, 1, 3)
    alone = [content(whole[n]) for n in range(8)]
    resumed = micro_batches(folder, 2, 1, 3, stored_cursors(whole.cursors(2)), first=2)
    assert [content(resumed[n]) for n in range(4)] == alone[4:]
    assert [content(batch) for batch in MicroBatchLoader(whole, 0, 8, 2)] == alone
    request = PLAN.requests[0]
    keys = [None if p is None else whole.streams["s"].source.find(p, 0).key for p in whole.positions_of(request, 5)]
    assert [key or None for key in whole[5].inputs[UNDERSTAND].keys[: request.places]] == keys


def test_rows_aside_have_all_their_places_filled_and_share_as_before(folder):
    """A player pairs the rows of both terms by their place, and has tensors for `count` of them."""
    redrawn = RowRequest("redrawn", GENERATE, "t", 2, aside=True)
    asked = RowRequest("asked", UNDERSTAND, "t", 2, shares="redrawn", aside=True)
    plan = StepPlan((RowRequest("answer", UNDERSTAND, "s", 3), redrawn, asked)).with_spare_places()
    dealt, plain = (step_of(folder, 1, 2, 3, plan=plan, balance=balance) for balance in (True, False))
    assert {len(batch.aside["redrawn"].keys) for batch in dealt} == {2}
    assert all(batch.aside["redrawn"].keys == batch.aside["asked"].keys and all(batch.aside["asked"].keys) for batch in dealt)
    found, wanted = (Counter(key for batch in step for key in batch.aside["asked"].keys) for step in (dealt, plain))
    assert found == wanted
    assert [batch.aside["asked"].keys for batch in dealt] != [batch.aside["asked"].keys for batch in plain]


def test_ranks_differ_in_their_numbers_of_rows(folder):
    """Else none of these tests would see rows that are missing."""
    filled = {len([k for k in batch.inputs[UNDERSTAND].keys[:4] if k]) for n in range(6) for batch in step_of(folder, n, 1, 4)}
    assert filled >= {2, 3, 4}


# Refusals


def test_what_cannot_be_measured_is_refused(folder):
    check_measured("data.s", StreamConfig(str(folder)))
    with pytest.raises(ConfigError, match=r"loader\.balance=true .* data\.s\.backend=webdataset .* loader\.balance=false"):
        check_measured("data.s", StreamConfig("pipe:cat x.tar", backend="webdataset"))
    piped = open_stream("s", StreamConfig("pipe:cat x.tar", backend="webdataset"), 0)
    with pytest.raises(NotImplementedError, match="`measures` is False"):
        piped.source.amounts(range(3), "")


def test_indexes_that_a_rank_cannot_reach_are_not_gone_without():
    check_values(LoaderConfig(balance=True), "loader")
    with pytest.raises(ConfigError, match=r"loader\.lost_shard=stop, or loader\.balance=false"):
        LoaderConfig(balance=True, lost_shard="substitute").check("loader")
