"""What this rank owns of the optimizer: its slices of the fp32 master weights, of AdamW's moments, and of the average.

The engine lays the slices of many parameters end to end in flat tensors. ZeRO-3 cuts every parameter into one slice per rank;
ZeRO-2 lays the parameters of a group end to end and cuts that. Either way two numbers per parameter say which rank has which
of its elements (`Layout`), for any number of ranks and without asking one of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megaunigame.engine.ema import Ema
from megaunigame.engine.zero3 import Learner
from megaunigame.errors import Interrupted

MASTER, MOMENTS, AVERAGE = "master", ("exp_avg", "exp_avg_sq"), "ema"


@dataclass(frozen=True)
class Layout:
    """How the elements of one parameter, flattened, are divided: rank r has those that lie in [r, r + 1) x `slice_size` when
    the first one lies at `offset`."""

    shape: tuple[int, ...]
    offset: int
    """0 under ZeRO-3; under ZeRO-2, the elements before it in its group."""
    slice_size: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def of_rank(self, rank: int) -> range:
        """Elements that `rank` has; empty on the last ranks when there are too few for all."""
        start, stop = (min(self.numel, max(0, edge * self.slice_size - self.offset)) for edge in (rank, rank + 1))
        return range(start, stop)

    def ranks_of(self, elements: range) -> range:
        """The ranks that have some of `elements`, which are consecutive."""
        if not elements:
            return range(0)
        first, last = ((self.offset + element) // self.slice_size for element in (elements[0], elements[-1]))
        return range(first, last + 1)


@dataclass(frozen=True)
class Slice:
    """This rank's elements of one parameter, and where they begin in a flat tensor."""

    name: str
    layout: Layout
    elements: range
    place: int

    def of(self, flat: Tensor) -> Tensor:
        """(len(elements),) a view of them."""
        return flat.narrow(0, self.place, len(self.elements))


class OptimizerSlices:
    """The flat tensors of a learner's engine on this rank, with names and element ranges of what they hold."""

    def __init__(self, learner: Learner):
        self.learner, self.optimizer = learner, learner.engine.optimizer
        self._names = {id(parameter): name for name, parameter in learner.module.named_parameters()}
        self.flats = list(self._partitioned() if learner.zero_stage == 3 else self._whole())
        """(master, slices of its parameters, empty ones too); padding between and after them belongs to no slice."""
        self.layouts = {part.name: part.layout for _, slices in self.flats for part in slices}
        """Of every trained parameter, the same on all ranks."""
        averages = [] if learner.ema is None else zip(learner.ema.masters, learner.ema.averages, strict=True)
        self._averages = {id(master): average for master, average in averages}
        self._states: dict[Tensor, dict[str, Any]] = self.optimizer.optimizer.state

    def _partitioned(self) -> Iterator[tuple[Tensor, list[Slice]]]:
        """ZeRO-3: a flat tensor holds a slice of each of its parameters, all padded to the size of the first rank's."""
        for parameters, master in zip(self.optimizer.fp16_groups, self.optimizer.fp32_partitioned_groups_flat, strict=True):
            slices, place = [], 0
            for parameter in parameters:
                layout = Layout(tuple(parameter.ds_shape), 0, parameter.partition_numel())
                slices.append(self._slice(parameter, layout, place))
                place += layout.slice_size
            yield master, slices

    def _whole(self) -> Iterator[tuple[Tensor, list[Slice]]]:
        """ZeRO-2: a flat tensor is this rank's slice of a group of parameters."""
        groups = zip(
            self.optimizer.round_robin_bit16_groups,
            self.optimizer.round_robin_bit16_offsets,
            self.optimizer.single_partition_of_fp32_groups,
            strict=True,
        )
        for parameters, offsets, master in groups:
            first = self.learner.world.rank * master.numel()
            slices = []
            for parameter, offset in zip(parameters, offsets, strict=True):
                layout = Layout(tuple(parameter.shape), offset, master.numel())
                slices.append(self._slice(parameter, layout, max(0, offset - first)))
            yield master, slices

    def _slice(self, parameter: Tensor, layout: Layout, place: int) -> Slice:
        return Slice(self._names[id(parameter)], layout, layout.of_rank(self.learner.world.rank), place)

    def updates(self) -> int:
        """AdamW's counter: updates done. 0: there are no moments yet."""
        steps = {int(self._states[master]["step"]) if master in self._states else 0 for master, _ in self.flats}
        if len(steps) != 1:
            raise RuntimeError(f"The flat tensors of the optimizer have had different numbers of updates: {sorted(steps)}")
        return steps.pop()

    def tensors(self, master: Tensor) -> dict[str, Tensor]:
        """`master`, its moments and its average, if there are any, by kind; all of the same length."""
        state = self._states.get(master, {})
        moments = {kind: state[kind] for kind in MOMENTS if kind in state}
        average = {AVERAGE: self._averages[id(master)]} if id(master) in self._averages else {}
        return {MASTER: master.detach(), **moments, **average}

    @torch.no_grad()
    def reset(self, updates: int) -> None:
        """Set AdamW's counters, make the moments that an engine with this counter has, and fill everything with zeros."""
        for master, _ in self.flats:
            master.zero_()
            if not updates:
                self._states.pop(master, None)
                continue
            state = self._states[master]
            # As torch's AdamW makes them in its first update; fused kernels read the counter on the device.
            fused = self.optimizer.optimizer.param_groups[0]["fused"]
            state["step"] = torch.tensor(float(updates), device=master.device if fused else "cpu")
            for kind in MOMENTS:
                state[kind] = torch.zeros_like(master)
        engine = self.learner.engine  # its own counters change nothing; monitors of a ds_config count by them
        engine.global_steps, engine.global_samples = updates, updates * engine.train_batch_size()

    @torch.no_grad()
    def publish(self) -> None:
        """Collective: make the weights of the model from the masters, as the end of an update does."""
        if self.learner.zero_stage == 2:
            self.optimizer.update_lp_params()
            return
        self.optimizer.checkpoint_event_prologue()
        for number in range(len(self.flats)):
            self.optimizer._reassign_or_swap_out_partitioned_parameters(number)
        self.optimizer.checkpoint_event_epilogue()  # weights that are whole on every rank, and second copies inside a node


@contextmanager
def averaged(learner: Learner) -> Iterator[None]:
    """Collective: inside, the weights of the model are their average; nothing may be trained or saved.

    An error of one rank, which ends the run, leaves them so: to take them back is a collective.
    """
    if learner.ema is None:
        raise RuntimeError("No average of the weights is kept.")
    slices = OptimizerSlices(learner)
    learner.ema.exchange()
    slices.publish()
    try:
        yield
    except Interrupted:  # of all ranks together
        _take_back(learner.ema, slices)
        raise
    _take_back(learner.ema, slices)


def _take_back(ema: Ema, slices: OptimizerSlices) -> None:
    ema.exchange()
    slices.publish()
