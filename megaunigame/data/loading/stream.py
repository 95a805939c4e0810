"""Micro-batches: from the cursors and a micro-step number to the tensors of that micro-step.

Nothing here is stateful. A micro-batch is a pure function of (shards, seed, plan, start cursor, micro-step, rank, world
size), so any number of loader workers gives the same sequence, and resuming means opening the index.
"""

from __future__ import annotations

import dataclasses
import gc
import signal
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from megaunigame.data.decode import Sample, decode_sample
from megaunigame.data.loading.bad_samples import BadSample
from megaunigame.data.loading.orphans import end_with_parent
from megaunigame.data.loading.packing import Package, pack
from megaunigame.data.loading.positions import StreamPositions
from megaunigame.data.sources.base import Cursor, SampleRef, Stream
from megaunigame.errors import DataError, UserError
from megaunigame.step.inputs import PassInputs
from megaunigame.step.requests import RowRequest, StepPlan
from megaunigame.step.rows import Row

SUBSTITUTES = 8
"""Other samples tried in place of a bad one before giving up."""


class RowMaker(Protocol):
    """Interface of an objective."""

    def row(self, request: RowRequest, sample: Sample, rng: np.random.Generator) -> Row | None:
        """None: the sample has nothing for this term, so the row is a dummy. DataError: the sample is bad."""
        ...


class Collator(Protocol):
    """Interface of a family's processor."""

    image_size: int
    max_length: int

    def check(self, row: Row, geometry: str, key: str) -> None:
        """Raises DataError for a row that cannot be collated."""
        ...

    def collate(
        self, plan: StepPlan, pass_name: str, rows: Sequence[Row | None], terms: Sequence[int], keys: Sequence[str]
    ) -> PassInputs: ...


@dataclass
class MicroBatch:
    """The inputs of every pass of one micro-step of one rank."""

    plan: StepPlan
    """The rows that take part in this micro-step."""
    inputs: dict[str, PassInputs]
    """The learner's passes by name -> their rows: requests in plan order, `count` rows each."""
    bad: list[BadSample]
    """Samples that were replaced."""
    aside: dict[str, PassInputs] = field(default_factory=dict)
    """Rows that the learner does not run, by term."""


@dataclass
class Draw:
    """Samples that one micro-step has read so far. Rows of several terms may share a sample: it is read and decoded once."""

    sharing: bool
    """Whether any rows share samples; otherwise samples are not kept."""
    bad: dict[tuple[str, int, int], BadSample] = field(default_factory=dict)
    refs: dict[tuple[str, int, int], SampleRef] = field(default_factory=dict)
    """By stream, position and attempt."""
    samples: dict[tuple[str, int, int], Sample] = field(default_factory=dict)


class MicroBatches(Dataset[MicroBatch]):
    """Item n is micro-step n of this run (n = 0 is the first after the cursors) on this rank."""

    def __init__(
        self,
        plan: StepPlan,
        objective_of: Mapping[str, RowMaker],
        streams: Mapping[str, Stream],
        processor: Collator,
        accumulation: int,
        rank: int,
        ranks: int,
        seed: int,
        first_step: int,
    ):
        """`seed` is that of the plan's rotations; `first_step` optimizer steps were made before this run."""
        self.plan = plan
        self.seed = seed
        self.first_micro_step = first_step * accumulation
        self.objective_of = objective_of
        """Loss term -> the objective that makes its rows."""
        self.streams = streams
        self.processor = processor
        self.rank = rank
        self.positions = StreamPositions(plan, accumulation, ranks)

    def cursors(self, steps: int) -> dict[str, Cursor]:
        """The streams' cursors after `steps` optimizer steps of this run."""
        return {
            name: dataclasses.replace(s.cursor, position=s.cursor.position + steps * self.positions.per_step(name))
            for name, s in self.streams.items()
        }

    def __getitem__(self, micro_step: int) -> MicroBatch:
        """Raises DataError when a sample and all its substitutes are bad, or a shard's index is."""
        plan = self.plan.at(self.first_micro_step + micro_step, self.seed)
        draw = Draw(sharing=any(request.shares for request in plan.requests))
        made = {request.term: self._rows(request, micro_step, draw) for request in plan.requests}
        inputs = {name: self._collated(self.plan, name, plan.of_pass(name), made) for name in plan.passes}
        aside = {r.term: self._collated(plan.alone(r), r.pass_name, [r], made) for r in plan.aside}
        return MicroBatch(plan, inputs, list(draw.bad.values()), aside)

    def _collated(
        self,
        plan: StepPlan,
        pass_name: str,
        requests: Sequence[RowRequest],
        made: dict[str, list[tuple[Row | None, str]]],
    ) -> PassInputs:
        """The rows of `requests` as one pass of `plan`."""
        places = [(request, index) for request in requests for index in range(request.count)]
        rows = [
            made[request.term][index][0] if _is_real(self.plan, request, index, made) else None for request, index in places
        ]
        terms = [plan.terms.index(request.term) for request, _ in places]
        keys = [made[request.term][index][1] for request, index in places]
        inputs = self.processor.collate(plan, pass_name, rows, terms, keys)
        return dataclasses.replace(inputs, texts=[("", "") if row is None else row.text for row in rows])

    def _rows(self, request: RowRequest, micro_step: int, draw: Draw) -> list[tuple[Row | None, str]]:
        """Row and sample key of each row of a request; None if a player fills the row."""
        if request.stream is None:
            return [(None, "")] * request.count
        base = self.streams[request.stream].cursor.position
        positions = self.positions.of(request, micro_step, self.rank, base)
        return [self._row(request, request.stream, position, draw) for position in positions]

    def _row(self, request: RowRequest, name: str, position: int, draw: Draw) -> tuple[Row | None, str]:
        """Row and key of the sample at `position` or of its first good substitute; records the bad ones in `draw`."""
        stream, objective = self.streams[name], self.objective_of[request.term]
        for attempt in range(1 + SUBSTITUTES):
            place = name, position, attempt
            if place not in draw.refs:  # a broken index is not a bad sample: its DataError ends the run
                draw.refs[place] = stream.source.find(position, attempt)
            ref = draw.refs[place]
            rng = np.random.default_rng([stream.source.seed, zlib.crc32(request.term.encode()), position])
            try:
                sample = draw.samples.get(place) or decode_sample(ref.key, ref.read(), stream.rules)
                if draw.sharing:
                    draw.samples[place] = sample
                row = objective.row(request, sample, rng)
                if row is not None:
                    self.processor.check(row, request.geometry, ref.key)
                return row, ref.key
            except (DataError, OSError) as error:
                ref.confirm()
                last = BadSample(stream.name, ref.key, ref.shard, str(error))
                draw.bad.setdefault(place, last)
        raise DataError(
            f"Stream {stream.name!r}: sample {position:,} and {SUBSTITUTES} substitutes cannot be used. The "
            f"last, in {last.shard}: {last.reason} Make the shards of {stream.source.location} again."
        )


def _is_real(plan: StepPlan, request: RowRequest, index: int, made: dict[str, list[tuple[Row | None, str]]]) -> bool:
    """Whether a row is not a dummy. A row aside also needs a real row of the same sample where it shares one, and that one in
    turn, to the term that owns the samples."""
    row, key = made[request.term][index]
    if row is None or request.shares is None or not request.aside:
        return row is not None
    owner = next(r for r in plan.requests if r.term == request.shares)
    return made[owner.term][index][1] == key and _is_real(plan, owner, index, made)


class MicroBatchLoader:
    """Micro-steps [first, last) of this run in order, `prefetch` prepared ahead by each of `workers` processes (0: this one).

    The sequence does not depend on `workers`. Does not change the global random state of torch.
    """

    def __init__(
        self, dataset: MicroBatches, first: int, last: int, workers: int, prefetch: int = 2, *, pin_memory: bool = False
    ):
        """`pin_memory`: for a run on a GPU only; it opens a context there."""
        self.steps = range(first, last)
        self._loader = DataLoader(
            _Reporter(dataset),
            sampler=self.steps,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            multiprocessing_context="fork" if workers else None,
            worker_init_fn=_start_worker if workers else None,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # else the loader draws its workers' seeds from the global generator
        )

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[MicroBatch]:
        """Raises the UserError of a worker."""
        for batch in self._loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch.unpacked()


class _Reporter(Dataset["Package[MicroBatch] | UserError"]):
    """Returns a UserError instead of raising it: the DataLoader would add the worker's traceback to its message."""

    def __init__(self, dataset: MicroBatches):
        self.dataset = dataset

    def __getitem__(self, micro_step: int) -> Package[MicroBatch] | UserError:
        try:
            return pack(self.dataset[micro_step])
        except UserError as error:
            return error


def _start_worker(worker: int) -> None:
    end_with_parent()
    torch.set_num_threads(1)
    gc.freeze()  # garbage collection would touch, and so copy, all memory inherited from the main process
    # Launchers and Ctrl-C signal whole process trees. The main process needs its workers to finish the step and save; they
    # end with it.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
