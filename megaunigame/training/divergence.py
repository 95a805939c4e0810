"""Decides, before an update, whether it is made; when too many were not; and when the gradient has been 0 for too long.

A refused update is skipped on all ranks: losses and norms are sums over all ranks, so every rank decides the same. What a
skipped step still does: it counts as a step, its samples are used up, and the hooks of the players come as in every other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from megaunigame.config import SKIP, DivergenceConfig
from megaunigame.monitoring import names
from megaunigame.training.spikes import Spike, SpikeDetector

KEPT = 1024
"""Numbers of skipped steps in a checkpoint, unless `divergence.skip` is larger."""


@dataclass(frozen=True)
class Refusal:
    """Why an update was not made."""

    terms: Sequence[str] = ()
    """Terms of rows whose loss is not finite; empty: all of them are finite."""
    of_players: Sequence[str] = ()
    """The same of players' losses, which may be the cause of a gradient that is not finite."""
    norm: float = 0.0
    """Of the gradient; infinity when it is not finite."""
    spikes: Sequence[Spike] = ()
    zeros: int = 0
    """Steps up to this one whose gradient norm was exactly 0, if they are too many."""
    losses: Mapping[str, float] = field(default_factory=dict)
    """Means of the terms, if they are."""

    @property
    def is_broken(self) -> bool:
        """Whether something is not finite; False: it is a spike."""
        return bool(self.terms) or not math.isfinite(self.norm)


class Divergence:
    """The verdicts on the updates of a run; its state is part of the run's."""

    def __init__(self, config: DivergenceConfig, of_players: Sequence[str]):
        """`of_players`: losses of players. One that is broken may reach its own parameters only, which the player guards; if it
        reaches the learner, the gradient shows it."""
        self.config, self.of_players = config, frozenset(of_players)
        self.spikes = SpikeDetector(config.spike, config.window)
        self.skipped = 0
        """Updates skipped since the beginning of the run."""
        self.refused: list[int] = []
        """Numbers of the last skipped steps. More than the window has: a resumed run may have a longer one."""
        self._last = -1
        """Number of the last step."""
        self.zeros = 0
        """Successive steps up to the last one whose gradient norm was exactly 0."""
        self.refusal: Refusal | None = None
        """Of the last step."""
        self.warnings: list[Spike] = []
        """Spikes of the last step whose update was made."""

    def accepts(self, step: int, means: Mapping[str, float], norm: float) -> bool:
        """Whether to update in step `step` (0 is the first), given the mean loss of each term and the gradient norm.

        Called once per step, with the same values on every rank.
        """
        broken = [term for term, mean in means.items() if not math.isfinite(mean)]
        of_rows = [term for term in broken if term not in self.of_players]
        self.refusal, self.warnings = None, []
        self.zeros = self.zeros + 1 if norm == 0 else 0
        if of_rows or not math.isfinite(norm):
            self.refusal = Refusal(of_rows, [term for term in broken if term in self.of_players], norm)
        elif 0 < self.config.zero_gradients <= self.zeros:
            self.refusal = Refusal(zeros=self.zeros, losses=dict(means))
        else:
            values = {names.loss(term): mean for term, mean in means.items()} | {names.OPTIM_GRAD_NORM: norm}
            spikes = self.spikes.look(values)
            if spikes and self.config.on_spike == SKIP:
                self.refusal = Refusal(norm=norm, spikes=spikes)
            else:
                self.warnings = spikes
        self._last = step
        if self.refusal is not None:
            self.skipped += 1
            self.refused = [*self.refused, step][-max(KEPT, self.config.skip + 1) :]
        return self.refusal is None

    @property
    def recent(self) -> list[int]:
        """Numbers of the skipped steps among the last `window`."""
        return [number for number in self.refused if number > self._last - self.config.window]

    @property
    def is_spent(self) -> bool:
        """Whether more updates were skipped than the budget allows."""
        return len(self.recent) > self.config.skip

    def state_dict(self) -> dict[str, Any]:
        state = {"skipped": self.skipped, "recent": self.refused, "zeros": self.zeros}
        return {**state, "series": self.spikes.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; nothing from an empty one, of an older checkpoint."""
        if state:
            self.skipped, self.refused = state["skipped"], list(state["recent"])
            self._last = max(self.refused, default=-1)
            self.zeros = state.get("zeros", 0)  # not in older checkpoints
            self.spikes.load_state_dict(state["series"])
