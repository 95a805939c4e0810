"""Keeps the ranks of an evaluation in step: under ZeRO-3 every rank must make the same model calls, or all of them hang.

Samples are dealt to the ranks, rows are cut into batches whose number all ranks agree on, missing rows are dummies, and
an error on one rank (a sample that cannot be read, a row that does not fit) is raised on all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import ParamSpec, TypeVar

import numpy as np
from tqdm import tqdm

from megaunigame.data.decode import Sample, decode_sample
from megaunigame.data.shards.index import ShardIndex
from megaunigame.errors import TransientError, UserError
from megaunigame.models.base import UnifiedModel
from megaunigame.parallel.ranks import Ranks
from megaunigame.parallel.together import common_kind
from megaunigame.pictures.rules import DEFAULT_RULES, PictureRules
from megaunigame.step.inputs import InputsT, PassInputs, of_kind
from megaunigame.step.requests import RowRequest, StepPlan
from megaunigame.step.rows import Row


@dataclass(frozen=True)
class Item:
    """One row of a batch."""

    position: int
    """Place of its sample in the order of the shards."""
    key: str
    row: Row


T = TypeVar("T")
ItemT = TypeVar("ItemT", bound=Item)
P = ParamSpec("P")


def together(data_ranks: Ranks, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run work without collectives; a UserError or TransientError on any rank is raised on every rank, with the message of the
    first rank that has one of the kind that counts most (`common_kind`)."""
    outcome: list[T] = []
    problem = None
    try:
        outcome.append(work(*args, **kwargs))
    except (UserError, TransientError) as error:
        problem = type(error), str(error)
    problems = [p for p in data_ranks.everyone.all_gather_object(problem) if p is not None]
    if problems:
        kind = common_kind([kind for kind, _ in problems])
        raise kind(next(text for of, text in problems if of is kind))
    return outcome[0]


def read_sample(index: ShardIndex, position: int, rules: PictureRules = DEFAULT_RULES) -> Sample:
    """The sample at a position in the order of the shards, all pictures decoded, so that errors come before model calls."""
    ends = np.cumsum(index.sizes)
    shard = int(np.searchsorted(ends, position, side="right"))
    return decode_sample(*index.read(shard, int(position - (ends[shard] - index.sizes[shard]))), rules).decoded()


def read_share(
    index: ShardIndex, limit: int, data_ranks: Ranks, rules: PictureRules = DEFAULT_RULES, shift: int = 0
) -> list[tuple[int, Sample]]:
    """(position, sample) of this rank: of the first `limit` samples (0: all) rank r has positions r, r + W, r + 2W, ...

    With `shift`, position p comes with the sample `shift` places further, modulo the number of samples.
    All are read before any model call, so `limit` also bounds the memory they take.
    """
    count = sample_count(index, limit)

    def read() -> list[tuple[int, Sample]]:
        return [(p, read_sample(index, (p + shift) % count, rules)) for p in range(data_ranks.rank, count, data_ranks.size)]

    return together(data_ranks, read)


def read_others(
    index: ShardIndex, limit: int, data_ranks: Ranks, rules: PictureRules = DEFAULT_RULES
) -> list[tuple[int, Sample]]:
    """As `read_share`, each position with a sample half-way further: neighbors may be near-identical (adversarial pairs)."""
    return read_share(index, limit, data_ranks, rules, shift=sample_count(index, limit) // 2)


def sample_count(index: ShardIndex, limit: int) -> int:
    """Number of samples of a suite: the first `limit`, or all when that is 0."""
    return min(limit, index.samples) if limit else index.samples


def lockstep_batches(rows: Sequence[T], batch: int, data_ranks: Ranks) -> list[list[T | None]]:
    """Cut this rank's rows into batches of exactly `batch`, padded with None; every rank gets the same number of batches."""
    most = max(data_ranks.all_gather_object(len(rows)))
    length = -(-most // batch) * batch
    padded = [*rows, *[None] * (length - len(rows))]
    return [padded[start : start + batch] for start in range(0, length, batch)]


def batches(
    model: UnifiedModel,
    data_ranks: Ranks,
    items: Sequence[ItemT],
    kind: type[InputsT],
    batch: int,
    *,
    takes_source: bool = False,
    geometry: str = "",
    progress: str = "",
) -> Iterator[tuple[list[ItemT], InputsT]]:
    """This rank's items, `batch` at a time, with the inputs of a pass on the CPU. All ranks take every batch together.

    `kind`: `UnderstandInputs` or `GenerateInputs`. Item i has row i; rows without an item are dummies (all of them when only
    other ranks have items left). `takes_source`: generate rows have a source image. `geometry`: as in `RowRequest`. `progress`:
    name of the progress bar; empty: none. Before each batch the evaluation can be left: see `models.base.leavable`.
    """
    for padded in tqdm(lockstep_batches(items, batch, data_ranks), desc=progress, unit=" batches", disable=not progress):
        model.leave_point()
        rows = [None if item is None else item.row for item in padded]
        keys = ["" if item is None else item.key for item in padded]
        inputs = together(data_ranks, collate, model, kind.pass_name, rows, keys, takes_source, geometry)
        yield [item for item in padded if item is not None], of_kind(kind, inputs)


def collate(
    model: UnifiedModel,
    pass_name: str,
    rows: Sequence[Row | None],
    keys: Sequence[str],
    takes_source: bool,
    geometry: str = "",
) -> PassInputs:
    """The tensors of one batch, where None is a dummy row. Call it inside `together`: a row may not fit."""
    request = RowRequest("evaluation", pass_name, "evaluation", len(rows), takes_source=takes_source, geometry=geometry)
    return model.processor.collate(StepPlan((request,)), pass_name, rows, [0] * len(rows), keys)


def gathered(data_ranks: Ranks, items: Sequence[T]) -> list[T]:
    """The items of all ranks on every rank, in the order of their `position`. Not for pictures: see `gathered_to_main`."""
    return _in_order(data_ranks.all_gather_object(list(items)))


def gathered_to_main(data_ranks: Ranks, items: Sequence[T]) -> list[T]:
    """The items of all ranks on rank 0, in the order of their `position`; nothing on the others.

    For pictures, which would fill the memory of every rank with those of the whole suite.
    """
    return _in_order(data_ranks.gather_object(list(items)))


def _in_order(items_of_ranks: Sequence[list[T]]) -> list[T]:
    return sorted(chain.from_iterable(items_of_ranks), key=attrgetter("position"))
