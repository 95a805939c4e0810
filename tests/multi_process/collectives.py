"""What collectives a rank makes, so that ranks can be compared without torch's comparison of each one, which takes longer than
the collectives of tiny models themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from megaunigame.parallel.ranks import Ranks

OF_GROUPS = (
    *("allgather", "_allgather_base", "all_gather_single", "allgather_coalesced", "allgather_into_tensor_coalesced"),
    *("allreduce", "allreduce_coalesced", "alltoall", "alltoall_base", "all_to_all_single", "barrier", "broadcast"),
    *("reduce", "reduce_scatter", "_reduce_scatter_base", "reduce_scatter_single", "reduce_scatter_tensor_coalesced"),
    *("reduce_scatter_single_coalesced", "all_gather_single_coalesced", "scatter"),
    *("gather", "gather_into_tensor", "gather_single"),
)
"""Methods of torch's ProcessGroup that are collectives, by their names there."""
UNEQUAL = ("gather", "gather_into_tensor", "gather_single", "scatter", "alltoall", "alltoall_base", "all_to_all_single")
"""Collectives to which ranks may give tensors of different shapes."""
Call = tuple[str, int, tuple[Any, ...]]


@contextmanager
def noted() -> Iterator[list[Call]]:
    """The collectives that this rank makes inside: name, ranks of the group, options; shapes and dtypes of the tensors where
    all ranks take part. Groups side by side may have other rows."""
    calls: list[Call] = []
    with mock.patch.multiple(ProcessGroup, **{name: _noting(name, calls) for name in OF_GROUPS}):
        yield calls


def _noting(name: str, calls: list[Call]) -> Any:
    made = getattr(ProcessGroup, name)

    def collective(group: ProcessGroup, *args: Any, **kwargs: Any) -> Any:
        given = [*args, *kwargs.values()]
        equal = name not in UNEQUAL and group.size() == dist.get_world_size()
        calls.append((name, group.size(), (*_options(given), *(_shapes(given) if equal else ()))))
        return made(group, *args, **kwargs)

    return collective


def _options(given: list[Any]) -> Iterator[str]:
    """The operation, and the rank that sends or receives."""
    for each in given:
        if hasattr(each, "reduceOp"):
            yield str(each.reduceOp.op)
        if hasattr(each, "rootRank"):
            yield f"of rank {each.rootRank}"


def _shapes(given: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    for each in given:
        if isinstance(each, torch.Tensor):
            yield str(each.dtype), tuple(each.shape)
        elif isinstance(each, list | tuple):
            yield from _shapes(each)


def check_same(case: str, calls: list[Call], world: Ranks) -> None:
    """Collective: every rank has made the same collectives, in the same order."""
    first = world.broadcast_object(calls)
    assert calls, f"{case}: no collective was noted"
    for number, (mine, theirs) in enumerate(zip_longest(calls, first, fillvalue=None)):
        assert mine == theirs, f"{case}: collective {number} of rank {world.rank} is {mine}, and of rank 0 {theirs}"
