"""Finds values far above the last ones of their series: losses of terms, and the gradient norm.

    z = (x - median) / max(1.4826 * MAD, FLOOR * |median|, TINY)

over the last `window` values of the series; MAD is the median of |x - median|, and 1.4826 makes it the standard deviation of
a normal distribution (Rousseeuw and Croux 1993, "Alternatives to the median absolute deviation"). One spike among them moves
neither median nor MAD, as it would mean and standard deviation. Skipping the update of a spike: PaLM (arXiv:2204.02311, 5.1),
OLMo-core's SkipStepOptimizer.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

LEAST = 20
"""Values of a series before anything is a spike (half of the window, if that is less): the first steps of a run fall fast."""
FLOOR = 0.05
"""Smallest standard deviation, relative to the median: a series that was constant may move."""
TINY = 1e-12
"""Smallest one of a series of zeros."""
TO_SIGMA = 1.4826


@dataclass(frozen=True)
class Spike:
    name: str
    """Of the series."""
    value: float
    median: float
    sigmas: float


class SpikeDetector:
    """Its values are a part of the state of a run: the same ones on every rank."""

    def __init__(self, limit: float, window: int):
        """`limit`: sigmas; 0: no value is a spike. They are kept all the same, for a resumed run with another limit."""
        self.limit, self.window = limit, window
        self.least = min(LEAST, max(1, window // 2))
        self.series: dict[str, deque[float]] = {}

    def look(self, values: Mapping[str, float]) -> list[Spike]:
        """The spikes among `values`, the largest first; then the values join their series.

        A spike joins its series too: a level that has changed for good is not one for ever. Values that are not finite do not.
        """
        found = []
        for name, value in values.items():
            if not math.isfinite(value):
                continue
            series = self.series.setdefault(name, deque(maxlen=self.window))
            if self.limit and len(series) >= self.least:
                median = statistics.median(series)
                sigma = max(TO_SIGMA * statistics.median(abs(x - median) for x in series), FLOOR * abs(median), TINY)
                if (sigmas := (value - median) / sigma) > self.limit:
                    found.append(Spike(name, value, median, sigmas))
            series.append(value)
        return sorted(found, key=lambda spike: -spike.sigmas)

    def state_dict(self) -> dict[str, list[float]]:
        return {name: list(series) for name, series in self.series.items()}

    def load_state_dict(self, state: Mapping[str, list[float]]) -> None:
        """Restore what `state_dict` returned; of a longer window, its last values."""
        self.series = {name: deque(values, maxlen=self.window) for name, values in state.items()}
