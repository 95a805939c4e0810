"""The hard buffer: as if one rank held everything, for any number of ranks, also after a restart."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from megaunigame.errors import CheckpointError
from megaunigame.replay.drawing import draw_probabilities
from megaunigame.replay.files import FILE
from megaunigame.replay.hard_buffer import HardBuffer, MergeReport
from megaunigame.replay.records import KEY_BYTES, RecordLayout, decode_key, encode_key
from tests.replay.random_games import (
    LAYOUT,
    Candidate,
    Game,
    check_round,
    held_numbers,
    mine_share,
    new_buffer,
    play_alone,
    play_round,
    random_game,
    records_of,
    replay,
)
from tests.worlds import OneRank, ThreadWorld, on_ranks

WORLD_SIZES = st.sampled_from([1, 2, 3, 4, 7])
SEEDS = st.integers(0, 2**32)


def play(game: Game, world_size: int) -> list[list[tuple[list[int], MergeReport]]]:
    """[rank][round] -> (numbers held after the merge, report)."""

    def work(world: ThreadWorld) -> list[tuple[list[int], MergeReport]]:
        buffer = new_buffer(game, world.rank, world.size)
        reports = (play_round(buffer, game, step, world) for step in range(len(game.rounds)))
        return [(held_numbers(buffer), report) for report in reports]

    return on_ranks(world_size, work)


@settings(max_examples=150)
@given(st.sampled_from([1, 2, 3, 4, 7, 12]), SEEDS)
def test_any_number_of_ranks_keeps_what_one_rank_would_keep(world_size, seed):
    game = random_game(seed, world_size)
    stories, alone = play(game, world_size), play(game, 1)[0]
    for step, expected in enumerate(play_alone(game)):
        check_round([story[step][0] for story in stories], stories[0][step][1], expected)
        check_round([alone[step][0]], alone[step][1], expected)
        assert alone[step][0] == expected[0] and alone[step][1].moved == 0
        assert len({repr(replace(story[step][1], bytes=0)) for story in stories}) == 1


def test_a_rehearsal_reaches_every_rank_and_changes_nothing():
    game = random_game(2, world_size=3)

    def work(world: ThreadWorld) -> tuple[list[list[int]], list[tuple[str, int]]]:
        buffer = new_buffer(game, world.rank, world.size)
        held = []
        for step in range(len(game.rounds)):
            buffer.rehearse(world)
            rehearsed = world.calls[-2:]
            play_round(buffer, game, step, world)
            held.append(held_numbers(buffer))
        return held, rehearsed

    results = on_ranks(3, work)
    assert [held for held, _ in results] == [[numbers for numbers, _ in story] for story in play(game, 3)]
    assert all([name for name, _ in calls] == ["all_gather", "all_to_all"] for _, calls in results)


def test_bytes_are_those_on_the_wire():
    game = replace(random_game(1, 4), capacity=10, rows=2)
    for step in range(len(game.rounds)):
        reports = [story[step][1] for story in play(game, 4)]
        calls = len(game.rounds[step].candidates) // (4 * game.rows)
        gathered = 4 * 4 * (3 + calls * game.rows)
        assert sum(r.bytes - gathered for r in reports) == reports[0].moved * LAYOUT.dtype.itemsize


def loss_stream(losses: list[float], first: int = 0) -> list[Candidate]:
    return [Candidate(first + i, loss, True) for i, loss in enumerate(losses)]


def test_nothing_moves_when_nothing_changed():
    def work(world: ThreadWorld) -> list[tuple[list[int], MergeReport]]:
        buffer = HardBuffer(LAYOUT, 10, 2, world.rank, world.size)
        mine_share(buffer, loss_stream([1, 1, 9, 9, 9, 9, 2, 2, 3, 3, 4, 4]), step=0)
        first = buffer.merge(world, 0, step=0, max_age=0)
        before = held_numbers(buffer)
        mine_share(buffer, [Candidate(0, 99.0, False)] * 12, step=1)
        return [(before, first), (held_numbers(buffer), buffer.merge(world, 0, step=1, max_age=0))]

    for (before, first), (after, second) in on_ranks(3, work):
        assert before == after and first.moved > 0
        assert (second.moved, second.entered, second.left, second.kept) == (0, 0, 0, 10)


def test_a_rank_with_nothing_makes_the_same_collectives():
    def work(world: ThreadWorld) -> list[tuple[str, int]]:
        buffer = HardBuffer(LAYOUT, 6, 2, world.rank, world.size)
        buffer.merge(world, 60, step=0, max_age=0)  # before any candidate
        for step, share in enumerate(["rank 0 alone", "nobody", "everybody"], start=1):
            records, accepted = records_of(loss_stream([step, step + 1.0], first=10 * world.rank), step)
            accepted[:] = share == "everybody" or (share == "rank 0 alone" and world.rank == 0)
            buffer.mine(records, accepted)
            buffer.merge(world, 60, step, max_age=1)
        return world.calls

    calls = on_ranks(3, work)
    assert calls[0] == calls[1] == calls[2]
    assert calls[0] == [("all_gather", 2), ("all_to_all", 0), *[("all_gather", 4), ("all_to_all", 0)] * 3]


def filled(losses: list[float]) -> HardBuffer:
    """One rank that holds records of those losses; number i has loss i of the list."""
    buffer = HardBuffer(LAYOUT, max(len(losses), 1), len(losses), 0, 1)
    mine_share(buffer, loss_stream(losses), step=3)
    buffer.merge(OneRank(), 0, step=3, max_age=0)
    return buffer


def test_not_finite_candidates_are_dropped_and_counted(tmp_path):
    buffer = HardBuffer(LAYOUT, 4, 4, 0, 1)
    records, accepted = records_of(loss_stream([1.0, float("nan"), float("inf"), float("nan")]), step=0)
    accepted[3] = False
    assert buffer.mine(records, accepted) == 2
    buffer.pending().write(tmp_path)
    assert load_file(tmp_path / FILE.format(0))["slots"].tolist() == [0]
    with pytest.raises(ValueError, match="3 rows; this buffer takes 4"):
        buffer.mine(records[:3], accepted[:3])


def test_mined_records_are_copies():
    buffer = HardBuffer(LAYOUT, 1, 1, 0, 1)
    records, accepted = records_of(loss_stream([1.0]), step=0)
    buffer.mine(records, accepted)
    records["image"] = 77
    buffer.merge(OneRank(), 0, step=0, max_age=0)
    assert held_numbers(buffer) == [0]


def test_refresh_changes_the_order_of_draws_and_ignores_what_is_not_finite():
    buffer = filled([4, 3, 2, 1])
    buffer.refresh(np.array([0, 1, 3]), np.array([np.nan, np.inf, 9.0]))
    assert buffer.losses.tolist() == [4, 3, 2, 9]
    assert buffer.records(np.array([3]))["loss"].tolist() == [9] and buffer.mean_age(10) == 7
    drawn = buffer.draw(3, temperature=1e-6, rng=np.random.default_rng(0), remove=False)
    assert drawn.tolist() == [3, 0, 1] and buffer.size == 4


def test_draws_follow_the_probabilities_and_never_repeat():
    buffer = filled([0, 1, 2, 3, 4])
    rng = np.random.default_rng(0)
    draws = [buffer.draw(2, 2.0, rng, remove=False).tolist() for _ in range(20_000)]
    assert all(len({*drawn}) == 2 for drawn in draws)
    p = draw_probabilities(5, 2.0)
    first, both = Counter(d[0] for d in draws), Counter(map(tuple, draws))
    np.testing.assert_allclose([first[i] / 20_000 for i in range(5)], p, atol=0.015)
    assert both[0, 1] / 20_000 == pytest.approx(p[0] * p[1] / (1 - p[0]), abs=0.015)


@pytest.mark.parametrize("temperature", [0.0, 1e-6, 2.0, 1e6])
def test_drawing_more_than_there_is_gives_all(temperature):
    rng = np.random.default_rng(0)
    assert sorted(filled(list(range(50))).draw(99, temperature, rng, remove=False).tolist()) == list(range(50))
    assert filled([float("nan")]).draw(4, temperature, rng, remove=False).tolist() == []


def test_removed_records_are_drawn_once_and_leave_at_the_next_merge():
    """As released. Four draws of two walk through seven records; those that stay are drawn again and again."""
    rng = np.random.default_rng(0)
    walked, stayed = filled([7, 6, 5, 4, 3, 2, 1]), filled([7, 6, 5, 4, 3, 2, 1])
    once = [walked.draw(2, 2.0, rng, remove=True).tolist() for _ in range(4)]
    again = [stayed.draw(2, 2.0, rng, remove=False).tolist() for _ in range(4)]
    assert [len(drawn) for drawn in once] == [2, 2, 2, 1] and sorted(sum(once, [])) == list(range(7))
    assert len({*sum(again, [])}) < 8 and stayed.size == 7
    assert walked.size == 0 and walked.draw(2, 2.0, rng, remove=True).tolist() == []
    assert walked.records(np.arange(7))["drawn"].tolist() == [1] * 7
    assert sum(stayed.records(np.arange(7))["drawn"]) == 8
    walked.mine(*records_of(loss_stream([1, 2, 3, 4, 5, 6, 7], first=7), step=4))
    report = walked.merge(OneRank(), 0, step=4, max_age=0)
    assert (report.kept, report.entered, report.left) == (7, 7, 7)
    assert held_numbers(walked) == [13, 12, 11, 10, 9, 8, 7] and walked.size == 7


@pytest.mark.parametrize("remove", [True, False])
def test_what_was_drawn_is_known_after_a_restart(tmp_path, remove):
    buffer = filled([4, 3, 2, 1])
    first = buffer.draw(2, 1e-6, np.random.default_rng(0), remove=remove)
    buffer.pending().write(tmp_path)
    again = HardBuffer(LAYOUT, 4, 4, 0, 1)
    again.load(tmp_path)
    assert again.records(first)["drawn"].tolist() == [1, 1]
    then = again.draw(2, 1e-6, np.random.default_rng(1), remove=remove)
    assert then.tolist() == buffer.draw(2, 1e-6, np.random.default_rng(1), remove=remove).tolist()
    assert then.tolist() == ([2, 3] if remove else [0, 1])


def test_a_replayed_loss_is_reduced_by_the_reference_of_its_record():
    buffer = HardBuffer(LAYOUT, 2, 2, 0, 1)
    records, accepted = records_of(loss_stream([2.0, 1.0]), step=0)
    records["reference"] = [0.5, 0.0]
    buffer.mine(records, accepted)
    buffer.merge(OneRank(), 0, step=0, max_age=0)
    buffer.refresh(np.array([0, 1]), np.array([3.0, 3.0]))
    assert buffer.losses.tolist() == [2.5, 3.0]


def test_draw_probabilities():
    expected = np.exp(np.array([2, 1, 0]) / 2.0)
    np.testing.assert_allclose(draw_probabilities(3, 2.0), expected / expected.sum(), rtol=1e-12)
    np.testing.assert_allclose(draw_probabilities(3, 0.0), [1, 0, 0])
    assert draw_probabilities(4096, 2.0).dtype == np.float64 and draw_probabilities(0, 2.0).size == 0


def test_keys_are_cut_to_whole_characters():
    assert decode_key(encode_key("scene/000001")) == "scene/000001"
    assert decode_key(encode_key("é" * 100)) == "é" * 64
    assert decode_key(encode_key("x" + "é" * 100)) == "x" + "é" * 63
    assert KEY_BYTES == 128


@settings(max_examples=60)
@given(WORLD_SIZES, WORLD_SIZES, SEEDS)
def test_a_restart_on_other_ranks_changes_nothing_that_is_kept(tmp_path_factory, first, then, seed):
    """`first` ranks play all rounds but the last merge and save; `then` ranks load and merge."""
    game, folder = random_game(seed, first), tmp_path_factory.mktemp("step")
    last = len(game.rounds) - 1

    def before(world: ThreadWorld) -> None:
        buffer = new_buffer(game, world.rank, world.size)
        for step in range(last):
            play_round(buffer, game, step, world)
        replay(buffer, game.rounds[last])
        mine_share(buffer, game.rounds[last].candidates, last)
        buffer.pending().write(folder)

    def after(world: ThreadWorld) -> tuple[list[int], MergeReport]:
        buffer = new_buffer(game, world.rank, world.size)
        buffer.load(folder)
        report = buffer.merge(world, game.percentile, last, game.max_age)
        return held_numbers(buffer), report

    on_ranks(first, before)
    held, reports = zip(*on_ranks(then, after), strict=True)
    check_round(list(held), reports[0], play_alone(game)[-1])


def test_mining_goes_on_where_the_other_ranks_stopped(tmp_path):
    """4 ranks mine one micro-step of the round, 2 ranks the rest: ties fall as on one rank that never stopped."""
    losses = [float(i % 3) for i in range(16)]

    def before(world: ThreadWorld) -> None:
        buffer = HardBuffer(LAYOUT, 6, 2, world.rank, world.size)
        mine_share(buffer, loss_stream(losses[:8]), step=0)
        buffer.pending().write(tmp_path)

    def after(world: ThreadWorld) -> list[int]:
        buffer = HardBuffer(LAYOUT, 6, 2, world.rank, world.size)
        buffer.load(tmp_path)
        mine_share(buffer, loss_stream(losses[8:], first=8), step=0)
        buffer.merge(world, 0, step=0, max_age=0)
        return held_numbers(buffer)

    on_ranks(4, before)
    assert sorted(sum(on_ranks(2, after), [])) == [1, 2, 5, 8, 11, 14]


def contents(file) -> tuple[dict[str, bytes], dict[str, str]]:
    with safe_open(file, "numpy") as opened:
        metadata = opened.metadata()
    return {name: tensor.tobytes() for name, tensor in load_file(file).items()}, metadata


@settings(max_examples=20)
@given(WORLD_SIZES, SEEDS)
def test_saved_and_loaded_at_the_same_ranks_is_equal_to_the_last_bit(tmp_path_factory, world_size, seed):
    game = random_game(seed, world_size)
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")

    def work(world: ThreadWorld) -> None:
        buffer = new_buffer(game, world.rank, world.size)
        for step in range(3):
            play_round(buffer, game, step, world)
        mine_share(buffer, game.rounds[3].candidates, step=3)
        buffer.pending().write(first)
        world.barrier()
        again = new_buffer(game, world.rank, world.size)
        again.load(first)
        again.pending().write(second)
        # Not only what is on disk: both go on alike, with the same records in the same indices and the same traffic.
        rngs = np.random.default_rng(0), np.random.default_rng(0)
        assert buffer.draw(3, 2.0, rngs[0], remove=False).tolist() == again.draw(3, 2.0, rngs[1], remove=False).tolist()
        assert repr(buffer.merge(world, 60, 4, 0)) == repr(again.merge(world, 60, 4, 0))  # the threshold may be NaN
        assert held_numbers(buffer) == held_numbers(again)

    on_ranks(world_size, work)
    for rank in range(world_size):
        assert contents(first / FILE.format(rank)) == contents(second / FILE.format(rank))


def test_loading_replaces_what_was_there(tmp_path):
    filled([1, 2, 3]).pending().write(tmp_path)
    buffer = filled([7, 8, 9])
    buffer.mine(*records_of(loss_stream([1, 2, 3]), step=0))
    buffer.load(tmp_path)
    assert held_numbers(buffer) == [2, 1, 0] and buffer.losses.tolist() == [3, 2, 1]
    report = buffer.merge(OneRank(), 60, step=3, max_age=0)
    assert report.candidates == 0 and report.kept == 3


def test_a_smaller_capacity_keeps_the_hardest(tmp_path):
    filled([1, 5, 3, 4]).pending().write(tmp_path)
    buffer = HardBuffer(LAYOUT, 2, 1, 0, 1)
    buffer.load(tmp_path)
    assert held_numbers(buffer) == [1, 3]


def test_files_that_do_not_fit(tmp_path):
    with pytest.raises(CheckpointError, match="holds no hard buffer"):
        filled([1]).load(tmp_path)
    for rank in range(3):
        HardBuffer(LAYOUT, 3, 1, rank, 3).pending().write(tmp_path)
    larger = HardBuffer(RecordLayout(image_size=4, max_length=3), 3, 1, 0, 1)
    with pytest.raises(CheckpointError, match=r"pictures of 2x2 and room for 3 tokens, this run has 4x4 and 3.*resume=never"):
        larger.load(tmp_path)
    with pytest.raises(CheckpointError, match="room for 3 tokens, this run has 2x2 and 5"):
        HardBuffer(RecordLayout(image_size=2, max_length=5), 3, 1, 0, 1).load(tmp_path)
    tensors, header = load_file(tmp_path / FILE.format(0)), contents(tmp_path / FILE.format(0))[1]
    older = {**tensors, "records": tensors["records"][:, :-9].copy()}
    save_file(older, tmp_path / FILE.format(0), header)
    with pytest.raises(CheckpointError, match="another version of megaunigame saved them"):
        HardBuffer(LAYOUT, 3, 1, 0, 3).load(tmp_path)
    save_file(tensors, tmp_path / FILE.format(0), header)
    (tmp_path / FILE.format(1)).unlink()
    with pytest.raises(CheckpointError, match="hard_buffer-rank-00001.safetensors of the hard buffer is missing"):
        HardBuffer(LAYOUT, 3, 1, 1, 3).load(tmp_path)
