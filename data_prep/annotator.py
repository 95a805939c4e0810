"""One shard in, the same shard with targets out: read, decode, predict and encode, at the same time.

Threads read and decode what comes next and encode what is done, while the calling thread does nothing but run the
teachers: a GPU must not wait for PNG files. All tasks share one decode of the picture.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

import torch

from data_prep.shard_writer import Shard, ShardSample
from data_prep.target_fields import SIMILARITY, TARGETS, target_size
from data_prep.teachers.base import Failure, Prediction, Teacher
from megaunigame.data.decode import DEPTH_FIELD, IMAGE_FIELDS, META_FIELD, SEGMENTATION_FIELD, Sample, decode_sample
from megaunigame.data.shards.index import ShardIndex
from megaunigame.errors import ConfigError, DataError

EXISTING = ("refuse", "keep", "replace")
LOOK_AHEAD = 4
"""Batches handed to a teacher at once: among so many pictures it finds enough of the same size to fill a forward."""

A = TypeVar("A")
B = TypeVar("B")


@dataclass
class Row:
    """A sample on its way through."""

    key: str
    fields: dict[str, bytes]
    """As read from the source."""
    tasks: tuple[str, ...] = ()
    """Still to be predicted; empty: the sample passes through as it is."""
    sample: Sample | None = None
    """Decoded, when there are tasks."""
    predictions: dict[str, Prediction] = field(default_factory=dict)
    failure: str = ""
    """Why the sample is left out."""


class Annotator:
    """The shard function of `data_prep annotate`. Its counters tell where the time went."""

    def __init__(
        self,
        index: ShardIndex,
        teachers: dict[str, Teacher],
        batch: int,
        threads: int,
        target_size: int,
        existing: str,
        progress: Callable[[int, int], None],
        failed: Callable[[dict[str, str]], None],
    ):
        """`existing` is one of `EXISTING`: what to do with a target the source has. `progress(shard, samples)` is told of
        samples done, `failed({key, reason})` of each that failed; it may raise to end the run."""
        self._index, self._teachers = index, teachers
        self._chunk, self._threads = LOOK_AHEAD * batch, threads
        self._target_size, self._existing = target_size, existing
        self._progress, self._failed = progress, failed
        self.images = 0
        """Pictures the teachers saw."""
        self.seconds = 0.0
        """In shards, all in all."""
        self.teacher_seconds = dict.fromkeys(teachers, 0.0)

    def shard(self, number: int) -> Shard:
        shard = Shard(samples=())
        shard.samples = self._samples(number, shard.failures)
        return shard

    def _samples(self, number: int, failures: list[dict[str, str]]) -> Iterator[ShardSample]:
        start = time.perf_counter()
        places = [(number, i) for i in range(len(self._index.table(number)))]
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="annotate")
        try:
            decoded = ahead(pool, self._decode, places, 2 * self._chunk)
            for row, sample in ahead(pool, self._encode, self._predict(decoded), self._chunk):
                self._progress(number, 1)
                if row.failure:
                    failures.append({"key": row.key, "reason": row.failure})
                    self._failed(failures[-1])
                else:
                    yield sample
        finally:
            pool.shutdown(cancel_futures=True)
            self.seconds += time.perf_counter() - start

    def _decode(self, place: tuple[int, int]) -> Row:
        """Runs in a thread. Raises DataError when the shard cannot be read: that is no fault of one sample."""
        row = Row(*self._index.read(*place))
        images = [name for name in IMAGE_FIELDS if name in row.fields]
        if not images:
            return row
        try:
            # Targets that are already there need no decoding.
            sample = decode_sample(row.key, {name: row.fields[name] for name in (META_FIELD, images[0]) if name in row.fields})
            pixels = sample.image  # decodes
        except DataError as error:
            row.failure = str(error)
            return row
        assert pixels is not None  # an image field was given
        row.tasks = open_tasks(row.key, row.fields, sample.meta, tuple(self._teachers), self._existing)
        row.sample = sample
        return row

    def _predict(self, rows: Iterator[Row]) -> Iterator[Row]:
        while chunk := list(islice(rows, self._chunk)):
            for task, teacher in self._teachers.items():
                asked = [(row, row.sample) for row in chunk if row.sample is not None and task in row.tasks]
                if asked:
                    start = time.perf_counter()
                    predictions = _predictions(teacher, [sample for _, sample in asked])
                    self.teacher_seconds[task] += time.perf_counter() - start
                    for (row, _), prediction in zip(asked, predictions, strict=True):
                        row.predictions[task] = prediction
            self.images += sum(bool(row.tasks) for row in chunk)
            yield from chunk

    def _encode(self, row: Row) -> tuple[Row, ShardSample]:
        """Runs in a thread."""
        output: ShardSample = {"__key__": row.key, **row.fields}
        if row.failure or row.sample is None or row.sample.image is None or not row.tasks:
            return row, output
        height, width = row.sample.image.shape[1:]
        size = target_size(height, width, self._target_size)
        numbers: dict[str, Any] = {}
        for task, prediction in row.predictions.items():
            if isinstance(prediction, Failure):
                row.failure = prediction.reason
                return row, output
            try:
                fields, about = TARGETS[task](prediction, size)
            except ValueError as error:
                row.failure = f"the {task} teacher gave {error}"
                return row, output
            output |= fields
            numbers |= about
        output[META_FIELD] = json.dumps({**row.sample.meta, **numbers}, ensure_ascii=False).encode()
        row.sample = None  # the pixels are not needed while the row waits for its turn
        return row, output


def open_tasks(
    key: str, fields: dict[str, bytes], meta: dict[str, Any], tasks: tuple[str, ...], existing: str
) -> tuple[str, ...]:
    """The tasks still to be done for a sample with an image. Raises DataError when one is done and that is refused."""
    done = {"depth": DEPTH_FIELD in fields, "segmentation": SEGMENTATION_FIELD in fields, "clip": SIMILARITY in meta}
    there = [task for task in tasks if done[task]]
    if there and existing == "refuse":
        raise already_there(f"sample {key!r}", there)
    return tuple(task for task in tasks if existing == "replace" or not done[task])


def already_there(what: str, tasks: list[str]) -> DataError:
    return DataError(
        f"{what} already has {' and '.join(tasks)}; leave that out of --tasks, or type --existing keep (only what is missing "
        "is made) or --existing replace"
    )


def ahead(pool: ThreadPoolExecutor, work: Callable[[A], B], items: Iterable[A], most: int) -> Iterator[B]:
    """`work(item)` for all items, in their order; the pool works on up to `most` that nobody has asked for yet."""
    waiting: deque[Future[B]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _predictions(teacher: Teacher, samples: list[Sample]) -> list[Prediction]:
    try:
        return teacher.predict(samples)
    except torch.OutOfMemoryError as error:
        raise ConfigError(f"A teacher ran out of memory: {error}. Type a smaller --batch, or --dtype bfloat16.") from error
