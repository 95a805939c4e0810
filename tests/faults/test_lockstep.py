"""Random plans on random data: the ranks stay in step, and compute what one process computes."""

from __future__ import annotations

import re

import pytest

from tests.faults.random_plans import write_home
from tests.multi_process.launcher import run_ranks

FAST_PLANS, PLANS, BAGEL_PLANS = 8, {2: 150, 4: 50}, {2: 100, 4: 100}
MUST_MEET = (
    "empty buffers",
    "replayed",
    "bad samples replaced",
    "a rank of dummies",
    "all rejected",
    "missing on all ranks",
    "different rows",
)
"""What so many random plans come by, or the fuzz is blind."""


@pytest.fixture(scope="module")
def odd_home(tmp_path_factory):
    return write_home(tmp_path_factory.mktemp("lockstep"))


@pytest.fixture(scope="module")
def bagel_home(tmp_path_factory):
    return write_home(tmp_path_factory.mktemp("lockstep"), "bagel")


def play(home, world_size, seed, plans, measured, timeout):
    said = run_ranks("tests.faults.lockstep", world_size, home, seed, plans, timeout=timeout)[0]
    found = re.search(rf"{plans} plans on {world_size} ranks: as one process; .*largest difference (\S+);", said)
    assert found, said
    measured("plans", plans)
    measured("largest relative difference", float(found[1]))
    return said


@pytest.mark.timeout(200)
@pytest.mark.fault(
    "random plans: the fast subset of the lockstep fuzz",
    does="two ranks stay in step, gradients equal those of one process",
    lost="",
)
def test_a_few_random_plans(odd_home, measured):
    play(odd_home, 2, 0, FAST_PLANS, measured, 190)


@pytest.mark.timeout(300)
@pytest.mark.fault(
    "random plans on a BAGEL, whose latent tokens have weights of their own",
    does="two ranks stay in step, gradients equal those of one process",
    lost="",
)
def test_a_few_random_plans_on_two_sets_of_weights(bagel_home, measured):
    """Rows of text alone, rows about pictures, requests with and without sources, dummies, on one rank and on the other."""
    said = play(bagel_home, 2, 3, FAST_PLANS, measured, 290)
    assert re.search(r"a rank of dummies [1-9]", said), said


@pytest.mark.faults
@pytest.mark.timeout(1200)
@pytest.mark.fault(
    "lockstep under random plans: objectives, rows, rotation, rows aside, missing pictures and captions, empty buffers, all "
    "pictures rejected, substituted samples, short and long texts, a rank of nothing but dummies",
    does="no collective waits or differs (TORCH_DISTRIBUTED_DEBUG=DETAIL); gradients, losses and norms equal those of one "
    "process",
    lost="",
)
@pytest.mark.parametrize("world_size", PLANS)
def test_random_plans(odd_home, measured, world_size):
    said = play(odd_home, world_size, 1, PLANS[world_size], measured, 1190)
    assert [what for what in MUST_MEET if not re.search(rf"{what} [1-9]", said)] == [], said


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.fault(
    "lockstep under random plans on a BAGEL: ranks with text alone, understanding alone, generation alone, all rows, or none",
    does="no collective waits or differs (TORCH_DISTRIBUTED_DEBUG=DETAIL); gradients, losses and norms equal those of one "
    "process",
    lost="",
)
@pytest.mark.parametrize("world_size", BAGEL_PLANS)
def test_random_plans_on_two_sets_of_weights(bagel_home, measured, world_size):
    said = play(bagel_home, world_size, 4, BAGEL_PLANS[world_size], measured, 3590)
    kinds = [f"passes {name}" for name in ("generate", "understand", "generate[+]understand")]
    assert [what for what in (*MUST_MEET, *kinds) if not re.search(rf"{what} [1-9]", said)] == [], said


def test_there_are_enough_plans():
    assert sum(PLANS.values()) >= 200 and set(PLANS) == {2, 4} and BAGEL_PLANS == {2: 100, 4: 100}
