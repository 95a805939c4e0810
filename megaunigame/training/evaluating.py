"""When a run is evaluated, and what becomes of an evaluation that a signal ends."""

from __future__ import annotations

import copy
from collections.abc import Callable

from megaunigame.checkpoint.agreement import on_main
from megaunigame.engine.zero3 import Learner
from megaunigame.errors import ConfigError, Interrupted
from megaunigame.evaluation.run import as_text, evaluation_file, scalars
from megaunigame.monitoring.history import METRICS_FILE, read_evaluation
from megaunigame.monitoring.monitor import Monitor
from megaunigame.parallel.interruption import Interruption
from megaunigame.parallel.pulse import EVALUATION, PULSE
from megaunigame.storage.json_lines import read_lines
from megaunigame.training.assembly import Assembly
from megaunigame.training.selection import Selection


class Evaluations:
    """The evaluations of one launch: before step 1, every so many steps, and after the last one."""

    def __init__(self, parts: Assembly, stop: Interruption, selection: Selection):
        """`selection` observes every evaluation."""
        self.parts, self.stop, self.world = parts, stop, parts.mesh.world
        self.selection = selection
        self.keep: Callable[[], None] = lambda: None
        """Collective: saves the steps so far, before a metric that no suite reports ends the run."""
        self.settings, self.last_step = parts.recipe.evaluation, parts.recipe.schedule.steps

    def due(self, step: int) -> bool:
        """Whether the weights after `step` steps are to be evaluated."""
        if not self.parts.suites:
            return False
        if step == 0:
            return self.settings.before
        return step == self.last_step or bool(self.settings.every and step % self.settings.every == 0)

    def owed(self, step: int) -> bool:
        """Collective: whether the step that this launch begins with is due, and no earlier launch has done it."""
        done = on_main(self.world, lambda: step > 0 and self._done(step) is not None)  # nodes may see different files
        return self.due(step) and not done

    def _done(self, step: int) -> dict[str, float] | None:
        """The metrics of the evaluation that an earlier launch of this run has made of `step`; None: of none, or not as they
        are asked for now. A damaged one, which a warning names, is made again."""
        if not self.parts.goes_on_here or self.selection.measured_otherwise:
            return None
        evaluation = read_evaluation(evaluation_file(self.parts.folder, step))
        return scalars(evaluation) if evaluation and self.selection.suites <= evaluation["suites"].keys() else None

    def stopped_before(self) -> str:
        """Collective: why the run had ended early when this launch began; empty: it had not. No model is needed.

        Raises ConfigError for a metric that the evaluation of this step does not report.
        """
        step = self.parts.state.step
        values = on_main(self.world, lambda: self._done(step) if step and self.due(step) else None)
        decided = copy.deepcopy(self.selection)
        if values is not None:
            decided.observe(step, values)
        return decided.stopped

    def record_missing(self, monitor: Monitor) -> None:
        """Collective: record the evaluation of this step if an earlier launch was killed after it had written its file."""
        values = on_main(self.world, lambda: self._record_missing(monitor))
        if values is not None:
            self.selection.observe(self.parts.state.step, values)

    def _record_missing(self, monitor: Monitor) -> dict[str, float] | None:
        """The metrics of the evaluation of this step; None: an earlier launch has not made it."""
        step = self.parts.state.step
        values = self._done(step) if step and self.due(step) else None  # before step 1 it is made again
        if values is None:
            return None
        lines = read_lines(self.parts.folder / METRICS_FILE)
        if not any(line.get("step") == step and set(values) <= set(line) for line in lines):
            monitor.record(step, values)
            monitor.evaluated(step)
        return values

    def run(self, learner: Learner, monitor: Monitor) -> bool:
        """Collective: evaluate the current weights, and report. False: the ranks stop, before it or between two of its calls.

        Nothing of it is recorded then, so that the next launch finds it owed. Raises ConfigError when the recipe names a metric
        that it does not report.
        """
        step = self.parts.state.step
        monitor.say(f"evaluating after step {step}: {', '.join(self.parts.suites)} ...")
        try:
            self.stop.leave_if_agreed(self.world)
            with PULSE.phase(EVALUATION):
                evaluation = self.parts.evaluate(learner, monitor.say, lambda: self.stop.leave_if_agreed(self.world))
        except Interrupted:
            return False
        values = on_main(self.world, lambda: scalars(evaluation))
        monitor.record(step, values)
        monitor.evaluated(step)
        if monitor.active:
            before = read_evaluation(evaluation_file(self.parts.folder, 0)) if step else None
            monitor.say(f"evaluation after step {step}\n{as_text(evaluation, before)}")
        try:
            self.selection.observe(step, values)
        except ConfigError:  # on all ranks
            self.keep()
            raise
        if said := self.selection.as_text():
            monitor.say(said)
        return True
