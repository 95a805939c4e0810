"""The ranks of a run by what they divide; that sets of them work is in tests/multi_process/shared_rows.py."""

from __future__ import annotations

from datetime import timedelta
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from megaunigame.errors import ConfigError, ModelError
from megaunigame.parallel.mesh import DataRanks, Mesh
from megaunigame.parallel.ranks import Ranks
from megaunigame.parallel.row_sharing import RowSharing
from tests.worlds import OneRank

CPU = torch.device("cpu")


def test_without_shared_rows_every_rank_is_a_data_rank():
    world = OneRank(3)
    mesh = Mesh.of(world)
    assert mesh.data is mesh.world is world and (mesh.sequence.rank, mesh.sequence.size) == (0, 1)
    assert mesh.data.everyone is world and mesh.data.writes and mesh.data.is_main


@pytest.mark.parametrize("rank", range(6))
def test_consecutive_ranks_share_rows_and_the_others_are_their_counterparts(monkeypatch, rank):
    """Six ranks, two to a row. Every rank takes part in making every group."""
    made, groups = [], [mock.Mock(spec=dist.ProcessGroup) for _ in range(2)]

    def subgroups(lists, timeout):
        made.append((lists, timeout))
        return groups[len(made) - 1], None

    monkeypatch.setattr(dist, "new_subgroups_by_enumeration", subgroups)
    world = Ranks(rank, 6, rank, CPU)
    mesh = Mesh.of(world, 2, timeout_minutes=7.0)
    assert made == [(lists, timedelta(minutes=7)) for lists in ([[0, 1], [2, 3], [4, 5]], [[0, 2, 4], [1, 3, 5]])]
    assert (mesh.sequence.rank, mesh.sequence.size, mesh.sequence.group) == (rank % 2, 2, groups[0])
    assert (mesh.data.rank, mesh.data.size, mesh.data.group) == (rank // 2, 3, groups[1])
    assert mesh.world is mesh.data.everyone is world
    assert mesh.data.is_main == (rank == 0), "one process of the run speaks, not one of each row"
    assert mesh.data.writes == (rank % 2 == 0), "the first process of a row writes what is of the row"


class First(Ranks):
    """Ranks whose first one has 7 where this one has something else."""

    def first(self, tensor):
        return tensor.fill_(7)


def test_what_a_later_step_depends_on_is_that_of_the_first_process_of_a_row(monkeypatch):
    summed = []
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, group: summed.append(group) or tensor.mul_(2))
    data = DataRanks(0, 2, 1, CPU, world=Ranks(1, 4, 1, CPU), sharers=First(1, 2, 1, CPU))
    assert data.all_reduce_sum(torch.tensor([1.0])).item() == 7 and summed == [None]
    assert data.same(torch.tensor([1.0])).item() == 7


@pytest.mark.fault("ranks that sequence_ranks does not divide", does="refuses, naming the legal numbers", lost="nothing")
def test_ranks_of_a_row_divide_the_ranks():
    with pytest.raises(ConfigError, match=r"engine.sequence_ranks=4 does not divide the 6 ranks.*: 1, 2, 3, 6\."):
        Mesh.of(OneRank(6), 4)


def test_a_model_refuses_to_share_its_rows_unless_it_says_how():
    for ask in (lambda: RowSharing.check_sequence_ranks("path", 2), lambda: RowSharing().share_sequence(OneRank(2))):
        with pytest.raises(ModelError, match="RowSharing does not divide a row among ranks. Type engine.sequence_ranks=1"):
            ask()
    RowSharing.check_sequence_ranks("path", 1)
    RowSharing().share_sequence(OneRank(1))
