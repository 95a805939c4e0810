"""The steps of a schedule that is given in epochs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from megaunigame.config import ScheduleConfig
from megaunigame.data.sources.base import Cursor, Stream
from megaunigame.errors import ConfigError
from megaunigame.registry import unknown
from megaunigame.settings import check_values


@dataclass(frozen=True)
class Epochs:
    """What `schedule.epochs` comes to."""

    epochs: float
    stream: str
    samples: int
    """Of an epoch of the stream."""
    per_step: int
    """Samples of the stream that an optimizer step takes, on all ranks."""
    steps: int
    """Of the whole run, from its first step."""

    def __str__(self) -> str:
        samples = f"{self.samples:,} samples, {self.per_step:,} a step"
        return f"{self.epochs:g} epoch{'' if self.epochs == 1 else 's'} of data.{self.stream} ({samples})"


def count_epochs(
    schedule: ScheduleConfig,
    streams: Mapping[str, Stream],
    per_step: Mapping[str, int],
    done: int,
    cursors: Mapping[str, Cursor],
) -> Epochs:
    """Count the steps until `schedule.epochs_of`, or the stream that takes longest, has given its epochs.

    `per_step`: samples of each stream in an optimizer step. `done`: steps of the run so far, after which the streams are at
    `cursors`; so a run with other steps from here on, or with its data begun again, still uses as many samples as it was asked
    to. Raises ConfigError for a stream that the plan does not read, or whose length is not known.
    """
    if schedule.epochs_of and schedule.epochs_of not in streams:
        raise ConfigError(unknown("stream in schedule.epochs_of", schedule.epochs_of, sorted(streams)))
    counted = []
    for name in [schedule.epochs_of] if schedule.epochs_of else sorted(streams):
        samples = streams[name].source.epoch
        if samples is None:
            raise ConfigError(
                f"schedule.epochs={schedule.epochs:g}: data.{name} is read without an index, so its number of samples is not "
                "known. Type schedule.epochs=0 schedule.steps=N"
                + (f", or schedule.epochs_of={others}." if (others := _with_length(streams)) else ".")
            )
        used = cursors[name].position if name in cursors else 0
        asked = math.ceil(Fraction(str(schedule.epochs)) * samples)  # 0.07 of 10,000 is 700; in floats, a bit more
        left = max(0, asked - used)
        counted.append(Epochs(schedule.epochs, name, samples, per_step[name], done + math.ceil(left / per_step[name])))
    if not counted:
        raise ConfigError("schedule.epochs: no objective reads a stream. Type schedule.epochs=0 schedule.steps=N.")
    return max(counted, key=lambda one: one.steps)


def _with_length(streams: Mapping[str, Stream]) -> str:
    return " or ".join(name for name, stream in sorted(streams.items()) if stream.source.epoch is not None)


def in_steps(schedule: ScheduleConfig, epochs: Epochs) -> ScheduleConfig:
    """The same schedule in steps. Raises ConfigError for a warm-up that is longer than it."""
    resolved = dataclasses.replace(schedule, steps=epochs.steps, epochs=0.0, epochs_of="")
    try:
        check_values(resolved, "schedule")
    except ConfigError as error:
        raise ConfigError(f"{error} ({epochs} are {epochs.steps:,} steps.)") from error
    return resolved
