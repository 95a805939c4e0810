"""The place of a process, from whatever a launcher, a scheduler or a user has put into the environment."""

from __future__ import annotations

import os

import pytest

from megaunigame.errors import ConfigError
from megaunigame.parallel.environment import NEEDED, Place, cpu_threads, place_of_process

EVERYTHING = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1"}


@pytest.fixture
def environment(monkeypatch):
    for name in (*NEEDED, "WORLD_SIZE", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")  # so that what is set in a test is undone after it
        monkeypatch.delenv(name)
    return lambda **given: [monkeypatch.setenv(name, value) for name, value in given.items()]


@pytest.mark.parametrize(
    "given", [{}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "node", "MASTER_PORT": "29511"}]
)
def test_a_process_alone(environment, given):
    environment(**given)
    assert place_of_process() == Place(0, 1, 0, alone=True)
    assert os.environ["LOCAL_RANK"] == "0" and os.environ["MASTER_ADDR"] == given.get("MASTER_ADDR", "127.0.0.1")


def test_a_described_world(environment):
    environment(**EVERYTHING)
    assert place_of_process() == Place(3, 4, 1, alone=False)


@pytest.mark.parametrize("missing", NEEDED)
def test_a_world_without_a_place_is_refused(environment, missing):
    environment(**{name: value for name, value in EVERYTHING.items() if name != missing})
    with pytest.raises(ConfigError, match=f"WORLD_SIZE=4 without {missing}: .*deepspeed or torchrun"):
        place_of_process()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"RANK": "x"}, "RANK='x', which is not a whole number"), ({"RANK": "4"}, "RANK=4 is not one of the ranks 0 to 3")],
)
def test_numbers_that_are_none(environment, wrong, message):
    environment(**EVERYTHING | wrong)
    with pytest.raises(ConfigError, match=message):
        place_of_process()


@pytest.mark.parametrize(("given", "threads"), [("2,1", 2), (" 4 ", 4), ("1", 1)])
def test_threads(environment, given, threads):
    assert cpu_threads() == 1
    environment(OMP_NUM_THREADS=given)
    assert cpu_threads() == threads


@pytest.mark.parametrize("given", ["", "x", "0", "-1", ",2"])
def test_threads_that_are_none(environment, given):
    environment(OMP_NUM_THREADS=given)
    with pytest.raises(ConfigError, match="OMP_NUM_THREADS=.*Type OMP_NUM_THREADS=1"):
        cpu_threads()
