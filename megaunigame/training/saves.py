"""The saves of one launch: the newest step, and the best one."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence

from megaunigame.engine.element_bytes import optimizer_bytes
from megaunigame.engine.zero3 import Learner
from megaunigame.errors import UserError
from megaunigame.monitoring import names
from megaunigame.monitoring.monitor import Monitor
from megaunigame.objectives.player import Player
from megaunigame.parallel.pulse import PULSE, SAVE
from megaunigame.training.assembly import Assembly
from megaunigame.training.run_lock import check_held
from megaunigame.training.selection import Selection
from megaunigame.training.state import TrainState

log = logging.getLogger(__name__)


class Saves:
    """Copies are made at once, and written while the training goes on."""

    def __init__(
        self,
        parts: Assembly,
        learner: Learner,
        players: Sequence[Player],
        selection: Selection,
        current_state: Callable[[], TrainState],
    ):
        """`current_state`: everything that affects the next steps."""
        self.parts, self.learner, self.players, self.selection = parts, learner, players, selection
        self.world, self.checkpoints, self.state = parts.mesh.world, parts.checkpoints, parts.state
        self.current_state = current_state
        self.last = -1
        """Step of the last save that began."""
        self._metrics: dict[str, float] = {}
        """Of a save that is complete, until the line of a step has them."""

    def make_room(self) -> None:
        """Keep what the run began with, and compare the free disk with what checkpoints will need.

        Only for a launch that holds the run folder alone. Raises CheckpointError when not even one has room.
        """
        self.parts.keep_start()
        trained = sum(getattr(p, "ds_numel", p.numel()) for group in self.learner.trained_groups for p in group)
        of_players = sum(size for player in self.players for size in player.host_bytes().values())
        each = optimizer_bytes(averaged=self.learner.ema is not None)
        self.checkpoints.check_room(each * trained + self.parts.mesh.data.size * of_players)

    def begin(self) -> None:
        """Collective: copy the state of the current step; the copy is written while the training goes on."""
        check_held(self.world)
        state, others = self.current_state(), [player.pending for player in self.players]
        with PULSE.phase(SAVE):
            self.checkpoints.begin(self.learner, dataclasses.asdict(state), state.step, others)
        self.last = state.step

    def finish(self) -> None:
        """Collective: the step is saved when this returns."""
        if self.last != self.state.step:
            self.begin()
        with PULSE.phase(SAVE):
            self.checkpoints.wait()

    def drop_lost_best(self) -> None:
        """Collective, at the beginning: forget a best checkpoint that this folder does not have, or that another run has made.

        That happens when a run went back, or goes on from another one. `best` then names no step until one is the best.
        """
        best = self.selection.best
        if best.step and not (self.parts.goes_on_here and self.checkpoints.has(best.step)):
            if self.world.is_main:
                log.warning(
                    "The best checkpoint so far, of step %d, is not in %s: the next ones are compared without it.",
                    best.step,
                    self.parts.folder,
                )
            best.begin_again()
        if not best.step:
            self.checkpoints.unmark_best(self.state.step)

    def keep_best(self) -> None:
        """Collective: let `best` name the checkpoint with the best metric; saves it if it is of this step and not saved yet."""
        step = self.selection.best.step
        # A folder of this step that another launch has saved, before the run went back, has other weights.
        if step and step == self.state.step and not (self.last == step and self.checkpoints.has(step)):
            self.begin()
        if step and not self.checkpoints.mark_best(step):
            self.selection.best.begin_again()
        if self.world.is_main:
            self.selection.write(self.parts.folder)

    def keep_last_step(self, monitor: Monitor) -> None:
        """Collective, before an error of the data ends the run: all ranks have the weights of the last step, which is good."""
        try:
            self.finish()
        except UserError as error:  # of all ranks; the error of the data is the one to be told
            log.warning("Step %d could not be saved: %s", self.state.step, error)
        self.completed(monitor)

    def say(self, monitor: Monitor) -> None:
        """What was saved since the last call."""
        for saved in self.checkpoints.taken():
            monitor.say(str(saved))
            self._metrics = {names.PERF_SAVE_SECONDS: saved.seconds, names.PERF_SAVE_PAUSE_SECONDS: saved.paused}

    def completed(self, monitor: Monitor) -> dict[str, float]:
        """Say what was saved since the last call; returns metrics of the last."""
        self.say(monitor)
        metrics, self._metrics = self._metrics, {}
        return metrics
