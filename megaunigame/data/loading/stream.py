"""Micro-batches: from the cursors and a micro-step number to the tensors of that micro-step.

A micro-batch is a pure function of (shards, seed, plan, start cursor, micro-step, rank, world size), so any number of loader
workers gives the same sequence, and resuming means opening the index. A sample that cannot be read is replaced at its position:
no other row moves.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
from torch.utils.data import Dataset

from megaunigame.data.decode import Sample, decode_sample
from megaunigame.data.loading.bad_samples import BadSample
from megaunigame.data.loading.dealing import AmountsAt, Dealer, Dealing
from megaunigame.data.loading.lost_shards import STOP_AT_ONCE, LostShardRule, LostShards
from megaunigame.data.loading.positions import StreamPositions
from megaunigame.data.sources.base import Cursor, SampleRef, Stream
from megaunigame.errors import DataError, LostShard
from megaunigame.step.amounts import Amounts
from megaunigame.step.inputs import PassInputs
from megaunigame.step.requests import RowRequest, StepPlan
from megaunigame.step.rows import Row

T = TypeVar("T")
SUBSTITUTES = 8
"""Other samples tried in place of a bad one before giving up."""
PLACES = 64
"""Places looked at for them: those in lost shards do not count as tried."""
Place = tuple[str, int, int]
"""Stream, position and attempt."""


class RowMaker(Protocol):
    """Interface of an objective."""

    def row(self, request: RowRequest, sample: Sample, rng: np.random.Generator) -> Row | None:
        """None: the sample has nothing for this term, so the row is a dummy. DataError: the sample is bad."""
        ...


class Collator(Protocol):
    """Interface of a family's processor."""

    image_size: int
    max_length: int

    @property
    def tokenizer_hash(self) -> str:
        """Names the tokenizer whose counts of tokens `lengths` wants."""
        ...

    def check(self, row: Row, geometry: str, key: str) -> None:
        """Raises DataError for a row that cannot be collated."""
        ...

    def collate(
        self, plan: StepPlan, pass_name: str, rows: Sequence[Row | None], terms: Sequence[int], keys: Sequence[str]
    ) -> PassInputs: ...

    def lengths(self, request: RowRequest, amounts: Amounts) -> np.ndarray:
        """(n,) tokens that the rows of a request are likely to have, of samples that hold these amounts."""
        ...


@dataclass
class MicroBatch:
    """The inputs of every pass of one micro-step of one rank."""

    plan: StepPlan
    """The rows that take part in this micro-step."""
    inputs: dict[str, PassInputs]
    """The learner's passes by name -> their rows: requests in plan order, `places` rows each."""
    bad: list[BadSample]
    """Samples that were replaced."""
    aside: dict[str, PassInputs] = field(default_factory=dict)
    """Rows that the learner does not run, by term."""
    dealing: int = 0
    """Digest of what each rank got; 0: an equal number of consecutive samples."""


@dataclass
class Draw:
    """Samples that one micro-step has read so far. Rows of several terms may share a sample: it is read and decoded once."""

    sharing: bool
    """Whether any rows share samples; otherwise samples are not kept."""
    note: Callable[[str], None]
    """Told what is read next."""
    bad: dict[Place, BadSample] = field(default_factory=dict)
    read: dict[Place, tuple[SampleRef, Sample] | BadSample] = field(default_factory=dict)
    """Also those that cannot be read: a shard that comes back between two rows must not part them."""


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
        lost_shards: LostShardRule = STOP_AT_ONCE,
        *,
        balance: bool = False,
    ):
        """`seed` is that of the plan's rotations; `first_step` optimizer steps were made before this run. `balance`: samples
        are dealt over the ranks by the length of their rows; else each rank takes consecutive ones."""
        self.plan = plan
        self.seed = seed
        self.first_micro_step = first_step * accumulation
        self.objective_of = objective_of
        """Loss term -> the objective that makes its rows."""
        self.streams = streams
        self.processor = processor
        self.rank = rank
        self.positions = StreamPositions(plan, accumulation, ranks)
        self.dealer = Dealer(self.positions, self.plan_at, processor.lengths) if balance else None
        self.lost_shards = LostShards(lost_shards)

    def cursors(self, steps: int) -> dict[str, Cursor]:
        """The streams' cursors after `steps` optimizer steps of this run."""
        return {
            name: dataclasses.replace(s.cursor, position=s.cursor.position + steps * self.positions.per_step(name))
            for name, s in self.streams.items()
        }

    def plan_at(self, micro_step: int) -> StepPlan:
        """The rows of a micro-step of this run."""
        return self.plan.at(self.first_micro_step + micro_step, self.seed)

    def __getitem__(self, micro_step: int) -> MicroBatch:
        return self.made(micro_step, lambda doing: None)

    def made(self, micro_step: int, note: Callable[[str], None]) -> MicroBatch:
        """Item `micro_step`; `note` is told what is read.

        Raises DataError when a sample and all its substitutes are bad, a shard's index is, or a shard is lost for good."""
        plan = self.plan_at(micro_step)
        draw = Draw(any(request.shares for request in plan.requests), note)

        def amounts(name: str, positions: range) -> Amounts:
            note(f"the index of stream {name}")
            return self.lost_shards.reach(name, partial(self._amounts, name, positions))

        dealing = self._dealing(micro_step, amounts)
        made = {request.term: self._rows(request, micro_step, dealing, draw) for request in plan.requests}
        inputs = {name: self._collated(self.plan, name, plan.of_pass(name), made) for name in plan.passes}
        aside = {r.term: self._collated(plan.alone(r), r.pass_name, [r], made) for r in plan.aside}
        return MicroBatch(plan, inputs, list(draw.bad.values()), aside, 0 if dealing is None else dealing.digest)

    def positions_of(self, request: RowRequest, micro_step: int) -> list[int | None]:
        """Position of the sample of each row of a request, which takes part in that micro-step; None: an empty place.

        Raises LostShard or DataError when rows are dealt and an index cannot be read."""
        return self._positions(request, micro_step, self._dealing(micro_step, self._amounts))

    def _amounts(self, name: str, positions: range) -> Amounts:
        return self.streams[name].source.amounts(positions, self.processor.tokenizer_hash)

    def _dealing(self, micro_step: int, amounts: AmountsAt) -> Dealing | None:
        if self.dealer is None:
            return None
        bases = {name: stream.cursor.position for name, stream in self.streams.items()}
        return self.dealer.dealing(micro_step, bases, amounts)

    def _positions(self, request: RowRequest, micro_step: int, dealing: Dealing | None) -> list[int | None]:
        """Of each place of a request."""
        assert request.stream is not None, "a player fills these rows"
        if dealing is not None:
            return dealing.of(request, self.rank)
        base = self.streams[request.stream].cursor.position
        own = self.positions.of(request, micro_step, self.rank, base)
        return [*own, *[None] * (request.places - request.count)]

    def _collated(
        self,
        plan: StepPlan,
        pass_name: str,
        requests: Sequence[RowRequest],
        made: dict[str, list[tuple[Row | None, str]]],
    ) -> PassInputs:
        """The rows of `requests` as one pass of `plan`."""
        places = [(request, index) for request in requests for index in range(request.places)]
        rows = [
            made[request.term][index][0] if _is_real(self.plan, request, index, made) else None for request, index in places
        ]
        terms = [plan.terms.index(request.term) for request, _ in places]
        keys = [made[request.term][index][1] for request, index in places]
        inputs = self.processor.collate(plan, pass_name, rows, terms, keys)
        return dataclasses.replace(inputs, texts=[("", "") if row is None else row.text for row in rows])

    def _rows(self, request: RowRequest, micro_step: int, dealing: Dealing | None, draw: Draw) -> list[tuple[Row | None, str]]:
        """Row and sample key of each row of a request; None if a player fills the row, or its place is empty."""
        if request.stream is None:
            return [(None, "")] * request.places
        positions = self._positions(request, micro_step, dealing)
        return [(None, "") if p is None else self._row(request, request.stream, p, draw) for p in positions]

    def _row(self, request: RowRequest, name: str, position: int, draw: Draw) -> tuple[Row | None, str]:
        """Row and key of the sample at `position` or of its first good substitute; records the bad ones in `draw`."""
        stream, objective = self.streams[name], self.objective_of[request.term]
        tried = 0
        for attempt in range(1 + PLACES):
            place = name, position, attempt
            read = draw.read.get(place) or self._read(stream, place, draw)
            if draw.sharing:
                draw.read[place] = read
            if isinstance(read, BadSample):
                bad = read
            else:
                ref, sample = read
                rng = np.random.default_rng([stream.source.seed, zlib.crc32(request.term.encode()), position])
                try:
                    row = objective.row(request, sample, rng)
                    if row is not None:
                        self.processor.check(row, request.geometry, ref.key)
                    return row, ref.key
                except (DataError, OSError) as error:
                    bad = self._reached(stream, place, partial(self._refused, stream, place, ref, error))
            draw.bad.setdefault(place, bad)
            tried += not bad.lost
            if tried > SUBSTITUTES:
                break
        raise DataError(
            f"Stream {stream.name!r}: sample {position:,} and {attempt} substitutes cannot be used. The last, in {bad.shard}: "
            f"{bad.reason} Make the shards of {stream.source.location} again."
        )

    def _read(self, stream: Stream, place: Place, draw: Draw) -> tuple[SampleRef, Sample] | BadSample:
        """The sample at a place. A broken index or a changed shard is not a bad sample: its DataError ends the run."""
        _, position, attempt = place

        def read() -> tuple[SampleRef, Sample] | BadSample:
            draw.note(f"the index of stream {stream.name}")
            ref = stream.source.find(position, attempt)
            draw.note(f"{ref.shard} of stream {stream.name}")
            try:
                return ref, decode_sample(ref.key, ref.read(), stream.rules)
            except LostShard as error:
                raise LostShard(str(error), ref.shard) from error
            except (DataError, OSError) as error:
                return self._refused(stream, place, ref, error)

        return self._reached(stream, place, read)

    def _reached(self, stream: Stream, place: Place, work: Callable[[], T]) -> T | BadSample:
        """The result of `work`; where its shard is lost and the run goes on without it, all of that shard is bad."""
        try:
            return self.lost_shards.reach(stream.name, work)
        except LostShard as error:
            return BadSample(stream.name, "", error.shard, str(error), place[1], lost=True)

    def _refused(self, stream: Stream, place: Place, ref: SampleRef, error: Exception) -> BadSample:
        """A sample that cannot be used, in a shard that has not changed (else raises DataError) and is there (LostShard)."""
        try:
            ref.confirm()
        except LostShard as lost:
            raise LostShard(str(lost), ref.shard) from lost
        return BadSample(stream.name, ref.key, ref.shard, str(error), place[1])


def _is_real(plan: StepPlan, request: RowRequest, index: int, made: dict[str, list[tuple[Row | None, str]]]) -> bool:
    """Whether a row is not a dummy. A row aside also needs a real row of the same sample where it shares one, and that one in
    turn, to the term that owns the samples."""
    row, key = made[request.term][index]
    if row is None or request.shares is None or not request.aside:
        return row is not None
    owner = next(r for r in plan.requests if r.term == request.shares)
    return made[owner.term][index][1] == key and _is_real(plan, owner, index, made)
