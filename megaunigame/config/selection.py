"""Settings of what evaluations decide: the best checkpoint, and an early end."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from megaunigame.errors import ConfigError
from megaunigame.settings import above, at_least, one_of

MAX, MIN = "max", "min"
EVALUATION_PREFIX = "evaluation/"
"""A metric may be typed with this prefix, as in metrics.jsonl."""


@dataclass
class BestConfig:
    """Keep the checkpoint with the best value of a metric, besides the newest ones."""

    metric: str = ""
    """LABEL/METRIC of an evaluation suite, for example `questions/accuracy/mean`; empty: no checkpoint is kept for it. A wrong
    name is an error after the first evaluation that should have it (of a new run: before step 1). It lists the legal ones."""
    mode: str = one_of([MAX, MIN], MAX)
    """Whether the largest value is the best, or the smallest."""


@dataclass
class EarlyStopConfig:
    """End the run when a metric has stopped improving."""

    metric: str = ""
    """As in `checkpoint.best.metric`; empty: the run makes all its steps."""
    mode: str = one_of([MAX, MIN], MAX)
    """Whether larger values are better, or smaller ones."""
    patience: int = above(0, 3)
    """Successive evaluations without an improvement that end the run. The one before step 1 does not count."""
    min_delta: float = at_least(0, 0.0)
    """An improvement is a change by more than this."""


def suite_of(metric: str) -> str:
    """The label of the suite that reports `metric`."""
    return metric.removeprefix(EVALUATION_PREFIX).partition("/")[0]


def check_metric(key: str, metric: str, suites: Collection[str], *, before: bool, every: int) -> None:
    """Raise ConfigError for the metric of setting `key` when no evaluation of the run will report it in time.

    `before` and `every`: as in EvaluationConfig.
    """
    if not metric:
        return
    if suite_of(metric) not in suites:
        legal = f"Legal labels: {', '.join(sorted(suites))}" if suites else "The recipe has none: add one to evaluation.suites"
        raise ConfigError(f"{key}={metric} must be LABEL/METRIC, with the label of a suite in evaluation.suites. {legal}.")
    if not every:
        raise ConfigError(f"{key}={metric} needs evaluations during the run. Type evaluation.every=N (optimizer steps).")
    if not before:
        raise ConfigError(
            f"{key}={metric} is compared with the names that the evaluation before step 1 reports. Type evaluation.before=true."
        )
