"""A process group of one process that pretends to be a rank of many: it records every collective, and the others answer as if
they had what this rank has.

An all-gather gives W copies of this rank's part, a sum W times its value, a reduction to parts this rank's own part, W times.
So a run goes on with finite numbers, all of its code is that of a run, and what it asks of the network is known for any W.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from deepspeed.comm import comm
from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
from deepspeed.runtime.zero.partition_parameters import Init
from deepspeed.utils import groups
from torch import Tensor
from torch._C._distributed_c10d import _create_work_from_future
from torch.futures import Future

BACKEND = "pretended"
GATHER, SCATTER, SUM, BROADCAST, EXCHANGE, BARRIER, TO_ONE = (
    *("all-gather", "reduce-scatter", "all-reduce", "broadcast", "all-to-all", "barrier", "gather to one rank"),
)


@dataclass(frozen=True)
class Collective:
    """One call of this rank."""

    kind: str
    bytes: int
    """Of the larger side on this rank: all that is gathered, all that is reduced, all that is sent or received."""
    phase: str
    elements: int = 0
    """Of that side, by one rank's part for kinds whose side grows with W."""


class PretendedGroup(dist.ProcessGroup):
    """Of `size` ranks. Every call is added to `calls`, under the current `phase`."""

    calls: list[Collective] = []  # noqa: RUF012  (of all groups of this process)
    phase = ""
    said: list[Tensor] = []  # noqa: RUF012
    """What rank 0 has broadcast: made on rank 0, and heard by another rank in the same order."""

    def __init__(self, rank: int, size: int):
        super().__init__(rank, size)
        self._rank, self._size = rank, size

    def size(self) -> int:
        return self._size

    def getBackendName(self) -> str:
        return BACKEND

    @property
    def pg_name(self) -> str:
        return dist.distributed_c10d._world.pg_names[self]

    @property
    def group_name(self) -> str:
        return self.pg_name

    def _done(self, kind: str, tensors: Sequence[Tensor], result: Any, part: int = 0) -> Any:
        size = sum(tensor.nbytes for tensor in tensors)
        type(self).calls.append(Collective(kind, size, type(self).phase, part or sum(tensor.numel() for tensor in tensors)))
        future: Future = Future()
        future.set_result(result)
        return _create_work_from_future(future)

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> Any:
        if opts is None or opts.reduceOp == dist.ReduceOp.SUM:
            for tensor in tensors:
                tensor.mul_(self._size)
        return self._done(SUM, tensors, tensors)

    allreduce_coalesced = allreduce

    def broadcast(self, tensors: list[Tensor], opts: Any = None) -> Any:
        for tensor in tensors:
            if self._rank == 0:
                type(self).said.append(tensor.clone())
            else:
                tensor.copy_(type(self).said.pop(0))
        return self._done(BROADCAST, tensors, tensors)

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> Any:
        for parts, own in zip(outputs, inputs, strict=True):
            value = own.clone()  # it may be one of the parts
            for part in parts:
                part.copy_(value)
        return self._done(GATHER, [part for parts in outputs for part in parts], outputs, sum(map(Tensor.numel, inputs)))

    def all_gather_single(self, output: Tensor, own: Tensor, opts: Any = None) -> Any:
        output.view(self._size, -1).copy_(own.clone().reshape(1, -1))
        return self._done(GATHER, [output], output, own.numel())

    def all_gather_single_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> Any:
        for output, own in zip(outputs, inputs, strict=True):
            output.view(self._size, -1).copy_(own.clone().reshape(1, -1))
        return self._done(GATHER, outputs, outputs, sum(map(Tensor.numel, inputs)))

    def reduce_scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any = None) -> Any:
        for output, parts in zip(outputs, inputs, strict=True):
            output.copy_(parts[self._rank].clone()).mul_(self._factor(opts))
        return self._done(SCATTER, [part for parts in inputs for part in parts], outputs, sum(map(Tensor.numel, outputs)))

    def reduce_scatter_single(self, output: Tensor, given: Tensor, opts: Any = None) -> Any:
        output.view(-1).copy_(given.view(self._size, -1)[self._rank].clone()).mul_(self._factor(opts))
        return self._done(SCATTER, [given], output, output.numel())

    def reduce_scatter_single_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> Any:
        for output, given in zip(outputs, inputs, strict=True):
            output.view(-1).copy_(given.view(self._size, -1)[self._rank].clone()).mul_(self._factor(opts))
        return self._done(SCATTER, inputs, outputs, sum(map(Tensor.numel, outputs)))

    def _factor(self, opts: Any) -> int:
        return self._size if opts is None or opts.reduceOp == dist.ReduceOp.SUM else 1

    def all_to_all_single(self, output: Tensor, given: Tensor, out_sizes: Any, in_sizes: Any, opts: Any = None) -> Any:
        output.zero_()
        return self._done(EXCHANGE, [max(output, given, key=lambda tensor: tensor.nbytes)], output)

    def gather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> Any:
        for parts in outputs:
            for part in parts:
                part.copy_(inputs[0])
        sides = [part for parts in outputs for part in parts] or inputs
        return self._done(TO_ONE, sides, outputs, inputs[0].numel())

    def barrier(self, opts: Any = None) -> Any:
        return self._done(BARRIER, [], None)


def _created(store: Any, rank: int, size: int, timeout: Any) -> PretendedGroup:
    return PretendedGroup(rank, size)


dist.Backend.register_backend(BACKEND, _created, devices=["cpu"])


@contextmanager
def pretended_group(rank: int, size: int, said: Sequence[Tensor] = ()) -> Iterator[type[PretendedGroup]]:
    """The process group of this process is rank `rank` of `size`; what it does is in `calls` of what is yielded, what it
    broadcasts as rank 0 in `said`. Another rank is given that."""
    PretendedGroup.calls, PretendedGroup.said, PretendedGroup.phase = [], list(said), ""
    kept = {name: copy.copy(value) for name, value in vars(groups).items() if name.startswith("_") and name[1:].isupper()}
    Init.param_id = 0
    DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__[0][0] = 0  # numbers of modules, which ranks compare
    level, linear = dist.get_debug_level(), torch.nn.functional.linear
    dist.set_debug_level(dist.DebugLevel.OFF)  # its wrapper would use a group of gloo
    dist.init_process_group(BACKEND, rank=rank, world_size=size, store=dist.HashStore())
    try:
        with mock.patch.dict(os.environ, {"LOCAL_RANK": "0"}):  # read by zero.Init
            yield PretendedGroup
    finally:
        dist.destroy_process_group()
        vars(groups).update(kept)  # those of the engine, which it keeps for the whole process
        comm.cdb = None
        dist.set_debug_level(level)
        torch.nn.functional.linear = linear  # zero.Init replaces it for the whole process
