"""Collectives of the host say that a process goes on."""

from __future__ import annotations

import torch

from megaunigame.parallel.pulse import PULSE
from megaunigame.parallel.ranks import Ranks


def test_an_agreement_is_a_sign_that_the_rank_goes_on(monkeypatch):
    """Else agreements in a row, each of them seen in a collective, look like one that never ends."""
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor, op, group: None)
    before = PULSE.look().marks
    assert Ranks(0, 1, 0, torch.device("cpu")).any(True)
    assert PULSE.look().marks == before + 1
