"""The ranks of a run by what they divide; that sets of them work is in tests/multi_process/shared_rows.py."""

from __future__ import annotations

import pytest

from megaunigame.errors import ConfigError
from megaunigame.parallel.mesh import Mesh
from tests.worlds import OneRank


def test_without_shared_rows_every_rank_is_a_data_rank():
    world = OneRank(3)
    mesh = Mesh.of(world)
    assert mesh.data is mesh.world is world and (mesh.sequence.rank, mesh.sequence.size) == (0, 1)
    assert mesh.data.everyone is world and mesh.data.writes and mesh.data.is_main


@pytest.mark.fault("ranks that sequence_ranks does not divide", does="refuses, naming the legal numbers", lost="nothing")
def test_ranks_of_a_row_divide_the_ranks():
    with pytest.raises(ConfigError, match=r"engine.sequence_ranks=4 does not divide the 6 ranks.*: 1, 2, 3, 6\."):
        Mesh.of(OneRank(6), 4)
