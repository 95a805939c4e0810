"""A process group of one, for engines inside the test process."""

from __future__ import annotations

import pytest

from megaunigame.parallel.world import World, start_world


@pytest.fixture(scope="session")
def world() -> World:
    """Stays open to the end of the process: deepspeed never forgets a group, and refuses its work after it was closed."""
    return start_world(1)
