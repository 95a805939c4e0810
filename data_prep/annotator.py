"""One shard in, the same shard with targets out: read, decode, predict and encode, at the same time.

Threads read and decode what comes next and encode what is done; the calling thread only runs the teachers: a GPU must not
wait for PNG files. All tasks share one decode of the picture.
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

from megaunigame.data.decode import (
    CODES_FIELD,
    DEPTH_FIELD,
    IMAGE_FIELDS,
    META_FIELD,
    SEGMENTATION_FIELD,
    Sample,
    decode_sample,
    further_fields,
)
from megaunigame.data.shards.index import ShardIndex
from megaunigame.errors import ConfigError, DataError
from megaunigame.pictures.rules import DEFAULT_RULES, PictureRules

from .shard_writer import Shard, ShardSample
from .target_fields import SIMILARITY, TARGETS, target_size
from .teachers.base import Failure, Prediction, Teacher

EXISTING = ("refuse", "keep", "replace")
LOOK_AHEAD = 4
"""Batches handed to a teacher at once, so that it finds enough pictures of the same size to fill a forward."""

A = TypeVar("A")
B = TypeVar("B")


@dataclass
class Item:
    """A sample being annotated."""

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
    """The shard function of `data_prep annotate`. Its counters say where the time went."""

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
        rules: PictureRules = DEFAULT_RULES,
    ):
        """`existing` is one of `EXISTING`: what to do with a target the source has. `progress(shard, samples)` is called
        for samples done, `failed({key, reason})` for each that failed; it may raise to end the run."""
        self._index, self._teachers = index, teachers
        self._chunk, self._threads = LOOK_AHEAD * batch, threads
        self._target_size, self._existing = target_size, existing
        self._progress, self._failed, self._rules = progress, failed, rules
        self.images = 0
        """Pictures the teachers saw."""
        self.seconds = 0.0
        """Spent in `shard`, in total."""
        self.teacher_seconds = dict.fromkeys(teachers, 0.0)

    def shard(self, number: int) -> Shard:
        failures: list[dict[str, str]] = []
        return Shard(self._samples(number, failures), failures)

    def _samples(self, number: int, failures: list[dict[str, str]]) -> Iterator[ShardSample]:
        start = time.perf_counter()
        places = [(number, i) for i in range(len(self._index.table(number)))]
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="annotate")
        try:
            decoded = ahead(pool, self._decode, places, 2 * self._chunk)
            for item, sample in ahead(pool, self._encode, self._predict(decoded), self._chunk):
                self._progress(number, 1)
                if item.failure:
                    failures.append({"key": item.key, "reason": item.failure})
                    self._failed(failures[-1])
                else:
                    yield sample
        finally:
            pool.shutdown(cancel_futures=True)
            self.seconds += time.perf_counter() - start

    def _decode(self, place: tuple[int, int]) -> Item:
        """Runs in a thread. Raises DataError when the shard cannot be read: that is not the fault of one sample."""
        item = Item(*self._index.read(*place))
        images = [name for name in IMAGE_FIELDS if name in item.fields]
        if not images:
            return item
        try:
            # Targets that are already there need no decoding, nor do further pictures, which the conversation is about too.
            needed = (META_FIELD, images[0], *further_fields(item.fields))
            sample = decode_sample(item.key, {name: item.fields[name] for name in needed if name in item.fields}, self._rules)
            pixels = sample.image  # decodes
        except DataError as error:
            item.failure = str(error)
            return item
        assert pixels is not None  # an image field was given
        item.tasks = open_tasks(item.key, item.fields, sample.meta, tuple(self._teachers), self._existing)
        item.sample = sample
        return item

    def _predict(self, items: Iterator[Item]) -> Iterator[Item]:
        while chunk := list(islice(items, self._chunk)):
            for task, teacher in self._teachers.items():
                asked = [(item, item.sample) for item in chunk if item.sample is not None and task in item.tasks]
                if asked:
                    start = time.perf_counter()
                    predictions = _predictions(task, teacher, [sample for _, sample in asked])
                    self.teacher_seconds[task] += time.perf_counter() - start
                    for (item, _), prediction in zip(asked, predictions, strict=True):
                        item.predictions[task] = prediction
            self.images += sum(bool(item.tasks) for item in chunk)
            yield from chunk

    def _encode(self, item: Item) -> tuple[Item, ShardSample]:
        """Runs in a thread."""
        output: ShardSample = {"__key__": item.key, **item.fields}
        if item.failure or item.sample is None or item.sample.image is None or not item.tasks:
            return item, output
        height, width = item.sample.image.shape[1:]
        size = target_size(height, width, self._target_size)
        numbers: dict[str, Any] = {}
        for task, prediction in item.predictions.items():
            if isinstance(prediction, Failure):
                item.failure = prediction.reason
                return item, output
            try:
                fields, about = TARGETS[task](prediction, size)
            except ValueError as error:
                item.failure = f"the {task} teacher gave {error}"
                return item, output
            output |= fields
            numbers |= about
        output[META_FIELD] = json.dumps({**item.sample.meta, **numbers}, ensure_ascii=False).encode()
        item.sample = None  # free the pixels while the item waits
        return item, output


def open_tasks(
    key: str, fields: dict[str, bytes], meta: dict[str, Any], tasks: tuple[str, ...], existing: str
) -> tuple[str, ...]:
    """The tasks still to be done for a sample with an image. Raises DataError when one exists and that is refused."""
    stored_as = {"depth": DEPTH_FIELD, "segmentation": SEGMENTATION_FIELD, "codes": CODES_FIELD}
    done = {"clip": SIMILARITY in meta} | {task: field in fields for task, field in stored_as.items()}
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
    """`work(item)` for all items, in their order; the pool works ahead on up to `most` of them."""
    waiting: deque[Future[B]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _predictions(task: str, teacher: Teacher, samples: list[Sample]) -> list[Prediction]:
    try:
        return teacher.predict(samples)
    except torch.OutOfMemoryError as error:
        rounded = "--dtype bfloat16, " if teacher.takes_dtype else ""
        raise ConfigError(
            f"The teacher of {task} ran out of memory: {error}. Type a smaller --batch, {rounded}or another --device."
        ) from error
