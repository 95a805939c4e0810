"""docs/scale.md is what its results say, and some of its rows are true today."""

from __future__ import annotations

import json
import pickle

import pytest

from tests.multi_process.launcher import run_script
from tests.scale.few import FEW, MANY, RESULT
from tests.scale.measure import GAME, OTHER, RESULTS, beats
from tests.scale.replayed import MERGE, SAVE, START, STEP, Replay
from tests.scale.write_page import PAGE, page


@pytest.fixture(scope="module")
def results():
    return json.loads(RESULTS.read_text())


@pytest.fixture(scope="module")
def replays(tmp_path_factory) -> dict[tuple[int, int], Replay]:
    """(rank, ranks) -> a run with all phases."""
    home = tmp_path_factory.mktemp("scale")
    run_script("-m", "tests.scale.few", home, check=True)
    return pickle.loads((home / RESULT).read_bytes())


def test_the_page_is_that_of_its_results(results):
    assert PAGE.read_text(encoding="utf-8") == page(results), "Type: python -m tests.scale.write_page"
    assert results["beats"][str(FEW)] == beats(FEW)


@pytest.mark.timeout(300)
def test_rows_of_the_page_are_true(results, replays):
    for rank in (0, OTHER):
        found = {"case": GAME, **replays[rank, FEW].row()}
        written = next(r for r in results["tiny"] if (r["case"], r["rank"], r["ranks"]) == (GAME, rank, FEW))
        for phase in found["phases"]:
            assert found["phases"][phase]["calls"] == written["phases"][phase]["calls"], (rank, phase)
        assert found["phases"][STEP] == written["phases"][STEP] and found["files"] == written["files"]


def test_ranks_make_the_same_calls_in_the_same_order(replays):
    assert replays[0, FEW].kinds() == replays[OTHER, FEW].kinds()


def test_nothing_grows_that_should_not(replays):
    few, many = replays[0, FEW], replays[0, MANY]
    times = MANY / FEW
    for phase in (START, STEP, MERGE, SAVE):
        assert few.counts(phase) == many.counts(phase), phase
    merged = [replayed.bytes(MERGE) - replayed.bytes(STEP) for replayed in (few, many)]
    assert 0 < merged[1] <= times * merged[0]
    assert many.bytes(STEP) < 1.05 * few.bytes(STEP), "padding, and 8 bytes of each rank"
    assert many.bytes(START) < 1.05 * few.bytes(START)
    assert many.bytes(SAVE) <= times * few.bytes(SAVE)
    assert many.files - few.files == 2 * (MANY - FEW)
    assert many.metadata[SAVE] - few.metadata[SAVE] <= 2 * (MANY - FEW) + 4, "one look at each file, and no listing per rank"
