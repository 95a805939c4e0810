"""Plans that are made once."""

from __future__ import annotations

import pytest

from megaunigame.planning.plan import Plan
from tests.planning.plans import tiny


@pytest.fixture(scope="session")
def full() -> Plan:
    """Two passes, everything trained, 3 ranks, ZeRO-2, without gradient checkpointing."""
    return tiny("tiny_unimrg", "model.train=full", "model.path=absent", "model.size=tiny", ranks=3)


@pytest.fixture(scope="session")
def game() -> Plan:
    """An attack apart from the learner's pass, 2 ranks, ZeRO-2, adapters."""
    return tiny("tiny_unigame")
