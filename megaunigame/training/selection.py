"""What evaluations decide: which checkpoint is the best, and whether the run ends early."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megaunigame.config import EVALUATION_PREFIX, MAX, BestConfig, EarlyStopConfig, EvaluationConfig, suite_of
from megaunigame.errors import ConfigError
from megaunigame.monitoring.selection import BEST, SELECTION_FILE, STOPPED
from megaunigame.registry import unknown
from megaunigame.storage.disk_errors import in_words
from megaunigame.storage.whole_files import write_whole

log = logging.getLogger(__name__)


@dataclass
class Leader:
    """The best value of a metric so far."""

    metric: str
    mode: str
    measured: dict[str, Any] = field(default_factory=dict)
    """How its values are made: settings of the suite, and which weights. Other values are not compared with them."""
    checked: bool = False
    """Whether an evaluation has had the metric: later, it may be missing once, as a mean over nothing."""
    last: int = 0
    """Step of the last evaluation that was counted."""
    step: int = 0
    """After which it was measured; 0: none was."""
    value: float = math.nan
    without: int = 0
    """Evaluations since then."""
    missing: bool = False
    """Whether the last evaluation had no finite value of it."""

    def observe(self, step: int, value: float | None, min_delta: float = 0.0) -> None:
        """Count an evaluation. A value that is missing or not finite is never an improvement."""
        self.last = step
        self.missing = value is None or not math.isfinite(value)
        if value is not None and not self.missing and self._improves(value, min_delta):
            self.step, self.value, self.without = step, value, 0
        else:
            self.without += 1

    def _improves(self, value: float, min_delta: float) -> bool:
        if not self.step:
            return True
        return value > self.value + min_delta if self.mode == MAX else value < self.value - min_delta

    def begin_again(self) -> None:
        """Forget the best value."""
        self.step, self.value, self.without = 0, math.nan, 0

    def __str__(self) -> str:
        return f"{self.metric} = {self.value:.6g} at step {self.step}"


class Selection:
    """Observes the evaluations of a run, the same on every rank."""

    def __init__(self, best: BestConfig, early_stop: EarlyStopConfig, evaluation: EvaluationConfig | None = None):
        """`evaluation`: of the recipe; without it, values of other settings are not told apart."""
        self.early_stop = early_stop
        self.best, self.watched = (Leader(_name(c.metric), c.mode, _measured(c.metric, evaluation)) for c in (best, early_stop))
        self.measured_otherwise = False
        """Whether the values of an earlier launch were made in another way than those of this one."""

    @property
    def last(self) -> int:
        """Step of the last evaluation that was counted."""
        return max(self.best.last, self.watched.last)

    @property
    def suites(self) -> set[str]:
        """Labels of the suites whose metrics are looked at."""
        return {suite_of(leader.metric) for leader in (self.best, self.watched) if leader.metric}

    @property
    def decides(self) -> bool:
        """Whether the recipe asks for anything of it."""
        return bool(self.best.metric or self.watched.metric)

    def state_dict(self) -> dict[str, Any]:
        """JSON values; empty for a run that decides nothing."""
        if not self.decides:
            return {}
        leaders = {"best": dataclasses.asdict(self.best), "watched": dataclasses.asdict(self.watched)}
        return {name: {**fields, "value": _json(fields["value"])} for name, fields in leaders.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; what it says of a metric that the recipe does not name any more, or that is measured otherwise
        now, is dropped."""
        for name in ("best", "watched"):
            own, saved = getattr(self, name), state.get(name, {})
            if not own.metric or (saved.get("metric"), saved.get("mode")) != (own.metric, own.mode):
                continue
            if saved.get("measured", own.measured) != own.measured:
                self.measured_otherwise = True
                continue
            last = saved.get("last", state.get("last", 0))
            value = math.nan if saved["value"] is None else saved["value"]
            kept = {"checked": bool(last), **saved, "measured": own.measured, "last": last, "value": value}
            setattr(self, name, Leader(**kept))

    def check(self, values: Mapping[str, float]) -> None:
        """Raise ConfigError for a metric that no evaluation has had yet, and that `values` of this one do not have either."""
        legal = sorted(name.removeprefix(EVALUATION_PREFIX) for name in values)
        for key, leader in (("checkpoint.best.metric", self.best), ("early_stop.metric", self.watched)):
            if leader.metric and not leader.checked and leader.metric not in legal:
                raise ConfigError(unknown(f"metric in {key}", leader.metric, legal))
        self.best.checked = self.watched.checked = True

    def observe(self, step: int, values: Mapping[str, float]) -> None:
        """Count the evaluation after `step` steps, once. Raises ConfigError for a metric that the run does not report."""
        if not self.decides:
            return
        self.check(values)
        for leader, min_delta in ((self.best, 0.0), (self.watched, self.early_stop.min_delta)):
            if leader.metric and step > leader.last:  # before step 1 there is no checkpoint
                leader.observe(step, values.get(EVALUATION_PREFIX + leader.metric), min_delta)

    @property
    def stopped(self) -> str:
        """Why the run ends early; empty: it does not."""
        leader, settings = self.watched, self.early_stop
        if not leader.metric or leader.without < settings.patience:
            return ""
        what = f"{leader}: no better value" if leader.step else f"{leader.metric} was never finite"
        by = f" by more than {settings.min_delta:g}" if settings.min_delta else ""
        return (
            f"stopped early after step {leader.last}: {what}{by} in {leader.without} evaluations "
            f"(early_stop.patience={settings.patience})"
        )

    def how_resumed(self) -> str:
        """What to say at the beginning; empty: nothing."""
        if not self.measured_otherwise:
            return ""
        return "best checkpoint and early stop begin again: a suite they look at, or evaluation.weights, has other settings now"

    def as_text(self) -> str:
        """One line for the console; empty: nothing to say."""
        parts = [f"{name} is not finite, which is no improvement" for name in sorted(self._missing())]
        if self.best.step:
            parts.append(f"best checkpoint so far: {self.best}")
        if self.watched.metric and self.watched.last and not self.stopped:
            without = f"{self.watched.without} of {self.early_stop.patience}"
            parts.append(f"{without} evaluations without a better {self.watched.metric}")
        return "; ".join(parts)

    def _missing(self) -> set[str]:
        return {leader.metric for leader in (self.best, self.watched) if leader.missing}

    def write(self, folder: Path) -> None:
        """For the report of the run in `folder`; a run that decides nothing has no file, or an empty one if it had one before.

        What cannot be written is a warning: the checkpoints have it too.
        """
        if not self.decides and not (folder / SELECTION_FILE).exists():
            return
        found = {BEST: f"best checkpoint: {self.best}" if self.best.step else "", STOPPED: self.stopped}
        try:
            write_whole(folder / SELECTION_FILE, json.dumps(found, indent=1))
        except OSError as error:
            log.warning("The report will not say what evaluations have decided: %s.", in_words(error, folder))


def _name(metric: str) -> str:
    return metric.removeprefix(EVALUATION_PREFIX)


def _measured(metric: str, evaluation: EvaluationConfig | None) -> dict[str, Any]:
    """Of JSON values, as a checkpoint gives them back."""
    if evaluation is None or not metric:
        return {}
    suite = evaluation.suites.get(suite_of(metric))
    return dict(json.loads(json.dumps({"suite": suite, "weights": evaluation.weights}, default=str)))


def _json(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
