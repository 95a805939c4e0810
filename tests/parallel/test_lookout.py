"""What one rank finds, with a clock and processes that the test moves."""

from __future__ import annotations

import dataclasses

import pytest
import torch.distributed as dist

from megaunigame.parallel.beats import Limits, Verdict
from megaunigame.parallel.heart import Heart
from megaunigame.parallel.home import Home
from megaunigame.parallel.line import Line
from megaunigame.parallel.lookout import BROKEN_SECONDS, Lookout
from megaunigame.parallel.processes import GONE, LIVES, STOPPED
from megaunigame.parallel.pulse import Pulse

EVERY = 1.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Lookouts:
    """Three ranks: 0 and 1 on one machine, 2 on another."""

    def __init__(self):
        self.clock, self.states = Clock(), {}
        self.homes = [Home(0, "a", "A", 10), Home(1, "a", "A", 11), Home(2, "b", "B", 10)]
        self.pulses = [Pulse(self.clock) for _ in self.homes]
        self.hearts = [Heart(home, pulse) for home, pulse in zip(self.homes, self.pulses, strict=True)]
        self.of = [
            Lookout(h, self.homes, Limits(silence=30, stall=100), lambda pid: self.states.get(pid, LIVES)) for h in self.hearts
        ]
        store = dist.HashStore()
        self.lines = [Line(store, rank, 3) for rank in range(3)]
        for line, heart in zip(self.lines, self.hearts, strict=True):
            line.open(heart.beat())

    def go(
        self, seconds: float, beating: tuple[int, ...] = (0, 1, 2), linked: tuple[int, ...] = (0, 1, 2)
    ) -> list[Verdict | None]:
        """What ranks find in the last of the seconds; first findings of each count."""
        found: list[Verdict | None] = [None] * 3
        for _ in range(int(seconds)):
            self.clock.now += EVERY
            for rank in beating:
                if rank in linked:
                    self.of[rank].hear(self.lines[rank].exchange(self.hearts[rank].beat())[0])
            for rank in beating:
                found[rank] = found[rank] or self.of[rank].find(EVERY)
        return found


@pytest.fixture
def three() -> Lookouts:
    ranks = Lookouts()
    for pulse in ranks.pulses:
        pulse._step = 5
    return ranks


def test_ranks_that_beat_find_nothing(three):
    assert three.go(300) == [None] * 3


def test_every_rank_hears_that_one_was_asked_to_stop(three):
    three.go(3)
    assert not any(pulse.stopping for pulse in three.pulses)
    three.pulses[2].stopping = True
    three.go(3)
    assert all(pulse.stopping for pulse in three.pulses)


def test_what_a_paused_machine_did_not_hear_says_nothing_about_others(three):
    """As after a snapshot of a virtual machine: the first look comes a minute late. What is silent from then on is lost."""
    three.go(5)
    three.clock.now += 60
    assert [lookout.find(EVERY) for lookout in three.of] == [None] * 3
    assert three.go(20) == [None] * 3
    assert three.go(32, beating=(0, 1))[0] is not None


def test_rank_0_names_a_silent_rank_and_the_others_do_not(three):
    three.go(5)
    found = three.go(32, beating=(0, 1))
    assert found[0] is not None and "rank 2 on b (pid 10) has not been heard" in found[0].text and found[1] is None


def test_the_state_of_a_silent_process_of_this_machine_is_added(three):
    three.go(5)
    three.states[11] = STOPPED
    found = three.go(32, beating=(0, 2))[0]
    assert found is not None and found.text.endswith(f"the process of rank 1 {STOPPED}")


def test_an_ended_process_is_found_at_once_on_its_machine_only(three):
    three.go(5)
    three.states[11] = GONE
    found = three.go(1, beating=(0, 2))
    assert found[0] == Verdict("rank 1 on a (pid 11) has ended, last seen in 'start-up' of step 5", (1,)) and found[2] is None


def test_a_process_that_left_may_end(three):
    three.states[11] = GONE
    three.of[0].left = lambda rank: rank == 1
    three.go(1)
    assert three.of[0].find(EVERY) is None


@pytest.mark.fault(
    "the link between two nodes is cut", does="both sides end, each naming the other", lost="since the newest checkpoint"
)
def test_a_cut_line_ends_both_sides_with_the_other_s_name(three):
    three.go(5)
    found = three.go(32, linked=(0, 1))
    assert found[0] is not None and found[0].ranks == (2,)
    assert found[2] is not None and found[2].ranks == (0,)
    assert "rank 0 on a (pid 10) cannot be reached for 30 s (its node or the network is gone" in found[2].text
    assert found[1] is None


def test_a_broken_line_is_given_less_time(three):
    three.go(5)
    three.of[2].broken = "Connection reset"
    assert three.go(BROKEN_SECONDS - 2, linked=(0, 1))[2] is None
    found = three.go(3, linked=(0, 1))[2]
    assert found is not None and "the line to it broke: Connection reset" in found.text


def test_a_rank_that_did_not_run_itself_blames_nobody(three):
    three.go(5)
    three.clock.now += 500  # the machine was suspended, and all of its processes
    assert three.go(1) == [None] * 3
    assert three.go(20, beating=(0, 1))[0] is None
    assert three.go(15, beating=(0, 1))[0] is not None, "and is still able to"


def test_a_rank_alone_ends_a_phase_of_a_step_that_never_ends():
    clock = Clock()
    pulse = Pulse(clock)
    home = Home(0, "a", "A", 10)
    alone = Lookout(Heart(home, pulse), [home], Limits(30, 100))
    with pulse.step(3), pulse.phase("data", in_step=True):
        for _ in range(100):
            clock.now += EVERY
            assert alone.find(EVERY) is None
        clock.now += EVERY
        found = alone.find(EVERY)
    assert found is not None and "'data' of step 3" in found.text


def test_the_first_verdict_counts(three):
    first, second = Verdict("one", (1,)), Verdict("two", (2,))
    assert three.lines[1].judge(first) == first
    assert three.lines[0].judge(second) == first
    assert three.lines[2].exchange(three.hearts[2].beat())[1] == first


def test_a_beat_tells_step_phase_and_how_long(monkeypatch):
    clock, waiting = Clock(), False
    pulse = Pulse(clock)
    heart = Heart(Home(3, "a", "A", 10), pulse)
    monkeypatch.setattr("megaunigame.parallel.heart.is_waiting", lambda: waiting)
    with pulse.step(7), pulse.phase("merge", in_step=True):
        marks = pulse.look().marks
        clock.now += 4
        beat = heart.beat()
        assert (beat.rank, beat.step, beat.phase, beat.in_step, beat.age, beat.waits) == (3, 7, "merge", True, 4.0, 0.0)
        waiting = True
        assert heart.beat().waits > 0
        clock.now += 9
        assert heart.beat().waits == pytest.approx(9, abs=0.1)
        pulse.mark()
        clock.now += 1
        assert heart.beat().waits < 1, "another collective"
        waiting = False
        assert heart.beat().waits == 0
    after = heart.beat()
    assert (after.phase, after.in_step, after.number) == ("start-up", False, 6) and after.marks == marks + 3
    assert dataclasses.replace(after, marks=0).step == 7
