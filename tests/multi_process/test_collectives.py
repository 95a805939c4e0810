"""Ranks that make other collectives are named."""

from __future__ import annotations

from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from tests.multi_process.collectives import OF_GROUPS, check_same, noted
from tests.worlds import on_ranks

SUM = ("allreduce", 2, (("torch.float32", (3,)),))


@pytest.mark.parametrize(
    ("second", "found"),
    [
        ([SUM, SUM], None),
        ([SUM], "collective 1 of rank 1 is None, and of rank 0 "),
        ([SUM, SUM, SUM], "collective 2 of rank 1 is .*, and of rank 0 None"),
        ([SUM, ("allreduce", 2, (("torch.float32", (4,)),))], "collective 1 of rank 1 is .*4.*, and of rank 0 .*3"),
        ([("broadcast", 2, SUM[2]), SUM], "collective 0 of rank 1 is .*broadcast"),
    ],
)
def test_the_first_difference_is_named(second, found):
    def work(world):
        check_same("a case", [SUM, SUM] if world.is_main else second, world)

    if found is None:
        on_ranks(2, work)
    else:
        with pytest.raises(AssertionError, match=f"a case: {found}"):
            on_ranks(2, work)


def test_a_case_without_collectives_is_an_error():
    with pytest.raises(AssertionError, match="no collective was noted"):
        on_ranks(1, lambda world: check_same("a case", [], world))


def test_names_groups_options_shapes_and_dtypes_are_noted(monkeypatch):
    stand_ins = dict.fromkeys(OF_GROUPS, lambda group, *args, **kwargs: None)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 4)
    group, tensor = SimpleNamespace(size=lambda: 4), torch.zeros(2, 3, dtype=torch.bfloat16)
    largest, second = dist.AllreduceOptions(), dist.BroadcastOptions()
    largest.reduceOp, second.rootRank = dist.ReduceOp.MAX, 1
    with mock.patch.multiple(ProcessGroup, **stand_ins), noted() as calls:
        ProcessGroup.allreduce(group, [tensor], largest)
        ProcessGroup.allreduce(SimpleNamespace(size=lambda: 2), [tensor], opts=dist.AllreduceOptions())
        ProcessGroup.broadcast(group, [tensor], second)
        ProcessGroup.allgather(group, [[tensor, tensor]], [tensor])
        ProcessGroup.gather(group, [[tensor]], [tensor])
        ProcessGroup.alltoall_base(group, tensor, tensor, [1, 1], [2, 0])
        ProcessGroup.barrier(group, opts=None)
    shape = ("torch.bfloat16", (2, 3))
    reduced = [("allreduce", 4, ("RedOpType.MAX", shape)), ("allreduce", 2, ("RedOpType.SUM",))]
    unequal = [("gather", 4, ()), ("alltoall_base", 4, ()), ("barrier", 4, ())]
    assert calls == [*reduced, ("broadcast", 4, ("of rank 1", shape)), ("allgather", 4, (shape,) * 3), *unequal]
    kinds = "all", "reduce", "_reduce", "_all", "broadcast", "scatter", "gather", "barrier"
    assert {name for name in dir(ProcessGroup) if name.startswith(kinds)} == set(OF_GROUPS)
