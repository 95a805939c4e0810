"""How often an evaluation gathers the weights: once for all its suites where they fit, else in every model call.

A picture that is drawn token by token takes hundreds of calls. What the gathers of all pictures will take is said before the
first step, and a launch that would spend more than its recipe allows is refused there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

from megaunigame.config import AUTO, ONCE, EvaluationConfig
from megaunigame.engine.memory_plan import short_bytes
from megaunigame.engine.whole_weights import fits_whole, gather_seconds, whole_bytes, whole_weights
from megaunigame.engine.zero3 import Learner
from megaunigame.errors import ConfigError
from megaunigame.evaluation.suites.base import Suite


def weights_for_suites(learner: Learner, settings: EvaluationConfig) -> contextlib.AbstractContextManager[None]:
    """Collective: the context in which the suites run."""
    return whole_weights(learner) if gathers_once(learner, settings) else contextlib.nullcontext()


def gathers_once(learner: Learner, settings: EvaluationConfig) -> bool:
    """Collective: whether the weights are gathered for all suites together. Not under ZeRO-2, where they are whole."""
    if not whole_bytes(learner):
        return False
    return settings.gather == ONCE or (settings.gather == AUTO and fits_whole(learner, settings.gather_share))


def check_drawing(
    learner: Learner, settings: EvaluationConfig, suites: Iterable[Suite], data_ranks: int, say: Callable[[str], None]
) -> None:
    """Collective, before the first evaluation: say what the gathers for its pictures will take, if it draws some.

    Raises ConfigError on every rank when that is more than `evaluation.most_drawing_hours`.
    """
    calls = sum(suite.drawings(data_ranks) for suite in suites) * learner.module.calls_per_sample
    if not calls or not whole_bytes(learner) or gathers_once(learner, settings):
        return
    hours = calls * gather_seconds(learner) / 3600
    what = f"drawing the pictures of an evaluation takes {calls:,} calls of each rank, and each gathers the weights"
    size = short_bytes(whole_bytes(learner))
    say(f"{what} ({size}): at least {_duration(hours)} in all")
    if 0 < settings.most_drawing_hours < hours:
        raise ConfigError(
            f"evaluation.most_drawing_hours={settings.most_drawing_hours:g}, but {what}: {size}, {_duration(hours)} in all, by "
            "a gather that was timed. Type a smaller `limit` of the suites that draw, evaluation.gather=once if the weights "
            "fit whole on every rank, or a larger evaluation.most_drawing_hours. Or leave these suites out, and draw from an "
            "export (docs/evaluation.md)."
        )


def _duration(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.1f} s"
