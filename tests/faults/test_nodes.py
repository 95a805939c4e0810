"""The cable between two nodes is cut in the middle of a step."""

from __future__ import annotations

import re

import pytest

from tests.faults.kills import LONGEST_LAUNCH, newest_step
from tests.faults.networks import Unavailable, two_hosts
from tests.faults.worlds import recipe, run_folder, same_at_any_size

ENDS_WITHIN = 60.0
"""Seconds from the cut to the end of both sides."""
STEPS_BEFORE = 4


@pytest.mark.faults
@pytest.mark.timeout(400)
@pytest.mark.fault(
    "the link between two nodes is cut in a step",
    does="both sides end within a minute, each naming the rank it lost; the same command goes on with the remaining node",
    lost="work since the last save",
)
def test_both_sides_of_a_cut_link_end_and_one_goes_on(server, home, measured):
    try:
        with two_hosts() as hosts:
            settings = same_at_any_size(home, 3000)
            command, run = recipe(home, "cut", settings), run_folder(home, "cut")
            launch = server.start(command, 2, environment=hosts.environment, networks=hosts.names, address=hosts.address)
            try:
                launch.wait_for_text(f"step {STEPS_BEFORE:4d}/", 0, LONGEST_LAUNCH)
                hosts.cut()
                begin = launch.now()
                codes = launch.wait(ENDS_WITHIN)
            finally:
                launch.kill()
            measured("both sides ended after", max(launch.ended.values()) - begin, "s")
            assert not {0, 75} & set(codes.values()), launch.said()
            for rank in (0, 1):
                assert re.search(rf"\brank {1 - rank}\b", launch.log(rank)), launch.said()
            saved = newest_step(run)
            assert saved is not None and saved >= STEPS_BEFORE - 2, launch.said()
            shorter = recipe(home, "cut", same_at_any_size(home, saved + 2))
            alone = server.start([*shorter], 1, environment=hosts.environment, networks=hosts.names[:1], address=hosts.address)
            codes = alone.wait(LONGEST_LAUNCH)
            assert codes == {0: 0} and f"after step {saved}" in alone.log(0), alone.said()
    except Unavailable as reason:
        pytest.skip(str(reason))
