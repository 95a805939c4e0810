"""A run whose ranks are killed with SIGKILL, at moments of every kind, ends as one that was never disturbed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megaunigame.checkpoint.trained import saved_learner
from tests.faults.kills import (
    LONGEST_LAUNCH,
    NUMBERS,
    SURVIVORS_END,
    Killed,
    checkpoint_of,
    differences,
    draw_rounds,
    longest_pause,
    metrics_of,
    train_with_kills,
)
from tests.faults.launches import ForkServer
from tests.faults.recording import Measure
from tests.faults.worlds import everything, recipe, run_folder, same_at_any_size

STEPS, FEW = 48, 10
FAST = ("forward", "before the rename", "before latest", "file of a save")
SEEDS = (1, 2, 3)
AT_ANY_SIZE = ("forward", "backward", "update", "step", "loading", "file of a save", "manifest", "before the rename")
AT_ANY_SIZE += ("before latest", "pruning", "dry run", "start-up")
LARGEST_DIFFERENCE = 1e-6
"""Of a weight, between numbers of ranks: the order of sums differs."""


def note(measured: Measure, history: Killed, run: Path) -> None:
    measured("kills", len(history.kills))
    measured("other ranks ended after", max(history.survived, default=0.0), "s")
    if history.resumed is not None:
        measured("resumed after", history.resumed, "s")
    measured("pause of a save", 1000 * longest_pause(run), "ms")


def undisturbed(server: ForkServer, home: Path, name: str, settings: dict, world: int) -> Path:
    """The run folder of a run without kills; made once."""
    folder = run_folder(home, name)
    if not (folder / "report.html").exists():
        launch = server.start(recipe(home, name, settings), world)
        codes = launch.wait(LONGEST_LAUNCH)
        assert set(codes.values()) == {0}, launch.said()
    return folder


def compare_bits(killed: Path, whole: Path, steps: int) -> None:
    assert differences(checkpoint_of(killed, steps), checkpoint_of(whole, steps)) == []
    ours, theirs = metrics_of(killed), metrics_of(whole)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    assert [differences(a, b) for a, b in zip(ours, theirs, strict=True)] == [[]] * len(theirs)


@pytest.mark.timeout(900)
@pytest.mark.fault(
    "rank killed (kill -9) in a forward, in a save, around its rename: the fast subset",
    does="the other ranks end by themselves; the same command goes on, to the same bits",
    lost="work since the last save",
)
def test_four_kills_change_no_bit(server, home, measured):
    settings = everything(home, FEW, evaluation={"suites": {}}, checkpoint={"every": 2, "keep": 1}, loader={"workers": 1})
    whole = undisturbed(server, home, "fast-whole", settings, 2)
    history = train_with_kills(
        server, recipe(home, "fast-killed", settings), run_folder(home, "fast-killed"), draw_rounds(0, [2], FAST), 2
    )
    assert sorted(history.kills) == sorted(FAST)
    note(measured, history, run_folder(home, "fast-killed"))
    compare_bits(run_folder(home, "fast-killed"), whole, FEW)


@pytest.mark.faults
@pytest.mark.timeout(1200)
@pytest.mark.fault(
    "a random rank killed (kill -9) at random moments: start-up, loading, dry run, forward, backward, update, merge of the "
    "hard buffer, every stage of a save, pruning, evaluation",
    does="the other ranks end by themselves within seconds; the same command goes on from the newest complete step; weights, "
    "moments, adversary, hard buffer and metrics end bit-equal to a run without kills",
    lost="work since the last save",
)
@pytest.mark.parametrize("seed", SEEDS)
def test_kills_at_every_moment_change_no_bit(server, home, measured, seed):
    settings = everything(home, STEPS)
    whole = undisturbed(server, home, "whole", settings, 2)
    name = f"killed-{seed}"
    history = train_with_kills(server, recipe(home, name, settings), run_folder(home, name), draw_rounds(seed, [2]), 2)
    assert sorted(history.kills) == sorted(NUMBERS), f"seed {seed}"
    note(measured, history, run_folder(home, name))
    compare_bits(run_folder(home, name), whole, STEPS)


def test_the_kills_of_all_rounds_are_at_least_forty():
    assert len(SEEDS) * len(NUMBERS) >= 40 and len(AT_ANY_SIZE) >= 10 and SURVIVORS_END <= 30


def learner_state(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Name -> whole tensor of the trained weights, joined from the files of all ranks."""
    saved = saved_learner(run / "checkpoints" / f"step-{step:08d}")
    return {name: saved.whole(name) for name in saved.layouts}


@pytest.mark.faults
@pytest.mark.timeout(1200)
@pytest.mark.fault(
    "ranks killed, and the number of ranks changed at every launch: 1, 2 and 4",
    does="goes on at the other number of ranks; trained weights end within 1e-6 of a run without kills on one",
    lost="work since the last save",
)
def test_kills_with_a_changing_number_of_ranks(server, home, measured):
    steps = 26
    settings = same_at_any_size(home, steps)
    whole = undisturbed(server, home, "one-rank", settings, 1)
    rounds = draw_rounds(4, [1, 2, 4], AT_ANY_SIZE)
    history = train_with_kills(server, recipe(home, "sizes", settings), run_folder(home, "sizes"), rounds, 1)
    assert sorted(history.kills) == sorted(AT_ANY_SIZE) and history.world_changes >= 10
    note(measured, history, run_folder(home, "sizes"))
    measured("changes of the number of ranks", history.world_changes)
    ours, theirs = learner_state(run_folder(home, "sizes"), steps), learner_state(whole, steps)
    assert set(ours) == set(theirs)
    apart = {name: float((ours[name].float() - theirs[name].float()).abs().max()) for name in theirs}
    measured("largest difference of a weight", max(apart.values()))
    assert max(apart.values()) <= LARGEST_DIFFERENCE, max(apart.items(), key=lambda pair: pair[1])
