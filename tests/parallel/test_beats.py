"""What heartbeats say: who is silent, who is late, who is slow."""

from __future__ import annotations

import dataclasses

import pytest

from megaunigame.parallel.beats import LOOKS, OFTEN, Beat, Heard, Limits, SlowRanks, Verdict, lost, spelled, stalled

LIMITS = Limits(silence=30, stall=100)


def beat(
    rank: int, phase: str = "backward", *, step=812, in_step=True, marks=50, age=1.0, waits=0.0, leaves=False, host=""
) -> Beat:
    return Beat(rank, host or f"node{rank // 4}", 1000 + rank, 7, step, phase, in_step, marks, age, waits, leaves)


def heard(*beats: Beat, silence: float = 1.0) -> list[Heard]:
    return [Heard(b, silence) for b in beats]


def test_the_rank_that_does_not_arrive_is_named_with_host_phase_and_step():
    others = [beat(rank, waits=101, age=101) for rank in (0, 1, 2, 3, 4, 6, 7)]
    verdict = stalled(heard(*others, beat(5, "data", marks=48, age=102)), LIMITS)
    assert verdict == Verdict(
        "rank 5 on node1 (pid 1005) has been in 'data' of step 812 for 102 s; ranks 0-4, 6-7 wait in 'backward' of step 812",
        (5,),
    )


def test_nothing_is_said_before_the_limit():
    assert stalled(heard(beat(0, waits=100), beat(1, "data", age=100)), LIMITS) is None
    assert (
        stalled(heard(beat(0, "evaluation", in_step=False, age=5000), beat(1, "evaluation", in_step=False, age=5000)), LIMITS)
        is None
    )


def test_a_phase_of_a_step_may_not_last_even_if_nobody_waits():
    verdict = stalled(heard(beat(0, "data", age=101)), LIMITS)
    assert verdict is not None and verdict.ranks == (0,) and "'data' of step 812" in verdict.text


def test_an_evaluation_ends_only_when_somebody_waits_in_it():
    first, second = (beat(rank, "evaluation", in_step=False, age=5000) for rank in (0, 1))
    verdict = stalled(heard(first, dataclasses.replace(second, waits=101)), LIMITS)
    assert verdict is not None and verdict.ranks == (0,)
    assert "'evaluation' after step 812" in verdict.text and "rank 1 waits" in verdict.text


def test_where_all_wait_the_one_that_is_behind_is_late():
    verdict = stalled(heard(beat(0, waits=101, marks=60), beat(1, waits=101, marks=59), beat(2, waits=101, marks=60)), LIMITS)
    assert verdict is not None and verdict.ranks == (1,)


def test_where_all_are_at_the_same_place_no_rank_is_blamed():
    verdict = stalled(heard(beat(0, waits=101, age=101), beat(1, waits=101, age=101)), LIMITS)
    assert (
        verdict is not None
        and verdict.ranks == (0, 1)
        and verdict.text.startswith("all ranks have been in 'backward' of step 812")
    )


def test_a_rank_that_leaves_is_neither_lost_nor_late():
    gone = beat(1, leaves=True)
    assert lost([Heard(beat(0), 1), Heard(gone, 1000)], LIMITS) is None
    assert stalled([Heard(beat(0, age=5, waits=1), 1), Heard(dataclasses.replace(gone, age=1000), 1000)], LIMITS) is None


def test_silent_ranks_of_a_node_are_one_line():
    verdict = lost([*heard(beat(0), beat(1)), *heard(beat(4), beat(5), silence=31)], LIMITS)
    assert verdict == Verdict("ranks 4-5 on node1 have not been heard for 31 s, last seen in 'backward' of step 812", (4, 5))
    assert lost(heard(beat(0), beat(1), silence=30), LIMITS) is None


def test_silence_before_the_first_step_may_last_longer():
    new = [Heard(beat(rank, "loading", step=0, in_step=False), silence) for rank, silence in ((0, 1.0), (1, 119.0))]
    assert lost(new, LIMITS) is None
    assert lost([new[0], Heard(new[1].beat, 121.0)], LIMITS) is not None


def test_a_slow_rank_is_named_once():
    slow = SlowRanks()
    look = heard(beat(0, waits=1), beat(1, "generate"), beat(2, waits=0.5))
    lines = [slow.look(look) for _ in range(LOOKS)]
    assert lines.count("") == LOOKS - 1 and lines[OFTEN - 1]
    assert lines[OFTEN - 1] == (
        f"rank 1 on node0 slows the run down: in {OFTEN} of the last {LOOKS} looks all others waited for it, "
        "most often in 'generate'"
    )


@pytest.mark.parametrize(
    "look",
    [
        heard(beat(0), beat(1, "generate")),  # nobody waits
        heard(beat(0, waits=1), beat(1, waits=1)),  # all wait
        heard(beat(0, waits=1), beat(1, "logging", in_step=False)),  # not a step
        heard(beat(0, waits=1), beat(1), beat(2)),  # more than one works
        heard(beat(0)),
    ],
)
def test_no_rank_is_slow_where_none_waits_for_it_alone(look):
    slow = SlowRanks()
    assert not any(slow.look(look) for _ in range(2 * LOOKS))


def test_beats_and_verdicts_travel_as_text():
    there = beat(3, age=1.5)
    assert Beat.from_text(there.as_text()) == there
    verdict = Verdict("x", (1, 2), failed=True)
    assert Verdict.from_text(verdict.as_text().encode()) == verdict


@pytest.mark.parametrize(("ranks", "text"), [([3], "rank 3"), ([0, 1, 2, 4, 7, 6], "ranks 0-2, 4, 6-7")])
def test_ranks_are_spelled_in_runs(ranks, text):
    assert spelled(ranks) == text
