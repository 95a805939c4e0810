"""When a run is evaluated, and what becomes of an evaluation that a signal ends."""

from __future__ import annotations

from megaunigame.checkpoint.agreement import on_main
from megaunigame.engine.zero3 import Learner
from megaunigame.errors import ConfigError, Interrupted
from megaunigame.evaluation.run import as_text, evaluation_file, scalars
from megaunigame.monitoring.monitor import METRICS_FILE, Monitor
from megaunigame.parallel.interruption import Interruption
from megaunigame.parallel.pulse import EVALUATION, PULSE
from megaunigame.storage.json_files import read_object
from megaunigame.storage.json_lines import read_lines
from megaunigame.training.assembly import Assembly


class Evaluations:
    """The evaluations of one launch: before step 1, every so many steps, and after the last one."""

    def __init__(self, parts: Assembly, learner: Learner, stop: Interruption):
        self.parts, self.learner, self.stop, self.world = parts, learner, stop, parts.mesh.world
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
        done = step > 0 and evaluation_file(self.parts.folder, step).exists()
        done = self.world.all_gather_object(done)[0]  # rank 0 decides: ranks may see different states of a shared folder
        return self.due(step) and not done

    def record_missing(self, monitor: Monitor) -> None:
        """Collective: record the evaluation of this step if an earlier launch was killed after it had written its file."""
        on_main(self.world, lambda: self._record_missing(monitor))

    def _record_missing(self, monitor: Monitor) -> None:
        step = self.parts.state.step
        file = evaluation_file(self.parts.folder, step)
        if step == 0 or not (self.due(step) and file.exists()):
            return  # before step 1 it is made again
        values = scalars(read_object(file, "an evaluation", ConfigError, "Delete it: it is made again."))
        lines = read_lines(self.parts.folder / METRICS_FILE)
        if not any(line.get("step") == step and set(values) <= set(line) for line in lines):
            monitor.record(step, values)

    def run(self, monitor: Monitor) -> bool:
        """Collective: evaluate the current weights, and report. False: the ranks stop, before it or between two of its calls.

        Nothing of it is recorded then, so that the next launch finds it owed.
        """
        step = self.parts.state.step
        try:
            self.stop.leave_if_agreed(self.world)
            with PULSE.phase(EVALUATION):
                evaluation = self.parts.evaluate(self.learner, lambda: self.stop.leave_if_agreed(self.world))
        except Interrupted:
            return False
        monitor.record(step, scalars(evaluation))
        monitor.say(f"evaluation after step {step}\n{as_text(evaluation)}")
        return True
