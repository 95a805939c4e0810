"""How an evaluation gets the weights: gathered once for all its suites, divided while a suite draws, or gathered in every call.

A picture that is drawn token by token takes hundreds of calls. What the gathers of all pictures will take is said before the
first step, and a launch that would spend more than its recipe allows is refused there.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence

from megaunigame.config import AUTO, EACH_CALL, ONCE, TENSOR_PARALLEL, EvaluationConfig
from megaunigame.engine.memory_plan import short_bytes
from megaunigame.engine.tensor_parallel import divided_bytes, divided_weights, fits_divided, legal_parts, sum_seconds, why_whole
from megaunigame.engine.whole_weights import fits_whole, gather_seconds, whole_bytes, whole_weights
from megaunigame.engine.zero3 import Learner
from megaunigame.errors import ConfigError
from megaunigame.evaluation.suites.base import Suite
from megaunigame.parallel.mesh import Mesh
from megaunigame.parallel.ranks import Ranks


class SuiteWeights:
    """The weights of the evaluations of one launch. The way is chosen once: divided weights draw other pictures, because the
    ranks that divide them count as one when samples and random numbers are dealt."""

    def __init__(self, settings: EvaluationConfig, mesh: Mesh, timeout_minutes: float):
        self.settings, self.mesh, self.timeout_minutes = settings, mesh, timeout_minutes
        self._way = ""
        self._divided: Mesh | None = None

    def way(self, learner: Learner) -> str:
        """Collective: `once`, `tensor_parallel` or `each_call`; also `each_call` under ZeRO-2, where weights are whole."""
        if not self._way:
            self._way = self._chosen(learner)
        return self._way

    def _chosen(self, learner: Learner) -> str:
        settings = self.settings
        if not whole_bytes(learner):
            return EACH_CALL
        if settings.gather != AUTO:
            return settings.gather
        if fits_whole(learner, settings.gather_share):
            return ONCE
        number, _ = self._parts(learner)
        # What is not divided is computed by all of these ranks: worth it only if each spares the others more calls than that.
        if number < 2 or learner.module.calls_per_sample <= number:
            return EACH_CALL
        return TENSOR_PARALLEL if fits_divided(learner, number, settings.gather_share) else EACH_CALL

    def for_all(self, learner: Learner) -> contextlib.AbstractContextManager[None]:
        """Collective: the context in which all suites run, one after another."""
        return whole_weights(learner) if self.way(learner) == ONCE else contextlib.nullcontext()

    @contextlib.contextmanager
    def for_one(self, learner: Learner, suite: Suite) -> Iterator[Ranks]:
        """Collective: the context in which one suite runs, on these data ranks. Divided if it draws; the others make few
        calls, and may measure attention, of which a rank would have some heads."""
        if self.way(learner) != TENSOR_PARALLEL or not suite.drawings(self.mesh.data.size):
            yield self.mesh.data
            return
        divided = self._divided_mesh(learner)
        with divided_weights(learner, divided.sequence):
            yield divided.data

    def check_drawing(self, learner: Learner, suites: Sequence[Suite], say: Callable[[str], None]) -> None:
        """Collective, before the first evaluation: say what its pictures will take beyond computation, if it draws some.

        Raises ConfigError on every rank when that is more than `evaluation.most_drawing_hours`, and for weights that cannot be
        divided.
        """
        if not whole_bytes(learner) or not self._calls(learner, suites, self.mesh.data.size):
            return
        if self.settings.tensor_ranks:
            self._divided_mesh(learner)  # a number that was typed is checked, wanted or not
        way = self.way(learner)
        if way == ONCE:
            return
        if way == TENSOR_PARALLEL:
            divided = self._divided_mesh(learner)
            number, calls = divided.sequence.size, self._calls(learner, suites, divided.data.size)
            size = short_bytes(divided_bytes(learner, number))
            hours = calls * sum_seconds(learner, divided.sequence) / 3600
            what = f"drawing the pictures of an evaluation takes {calls:,} calls of {number} ranks together ({size} a rank)"
            how = "by sums that were timed"
        else:
            calls = self._calls(learner, suites, self.mesh.data.size)
            size = short_bytes(whole_bytes(learner))
            hours = calls * gather_seconds(learner) / 3600
            what = (
                f"drawing the pictures of an evaluation takes {calls:,} calls of each rank, and each gathers {size} of weights"
            )
            how = "by a gather that was timed"
        say(f"{what}: at least {_duration(hours)} in all")
        if 0 < self.settings.most_drawing_hours < hours:
            raise ConfigError(
                f"evaluation.most_drawing_hours={self.settings.most_drawing_hours:g}, but {what}: {_duration(hours)} in all, "
                f"{how}. Type a smaller `limit` of the suites that draw, evaluation.gather=once if the weights fit whole on "
                f"every rank{self._advice(learner, way)}, or a larger evaluation.most_drawing_hours. Or leave them out, "
                "and draw from an export (docs/evaluation.md)."
            )

    def _calls(self, learner: Learner, suites: Sequence[Suite], data_ranks: int) -> int:
        return sum(suite.drawings(data_ranks) for suite in suites) * learner.module.calls_per_sample

    def _advice(self, learner: Learner, way: str) -> str:
        possible = way == EACH_CALL and self._parts(learner)[0] > 1
        return ", evaluation.gather=tensor_parallel if they fit on the ranks of a node together" if possible else ""

    def _divided_mesh(self, learner: Learner) -> Mesh:
        """Collective: groups of ranks are made once."""
        if self._divided is None:
            number, problem = self._parts(learner)
            if problem:
                typed = f"evaluation.tensor_ranks={self.settings.tensor_ranks}" if self.settings.tensor_ranks else ""
                raise ConfigError(f"{typed or 'evaluation.gather=tensor_parallel'}: {problem}")
            self._divided = Mesh.of(self.mesh.world, number, self.timeout_minutes)
        return self._divided

    def _parts(self, learner: Learner) -> tuple[int, str]:
        """Collective: the number of parts, and why the weights are not divided. The same on all ranks."""
        otherwise = "Type evaluation.tensor_ranks=0 and evaluation.gather=once, or each_call."
        if self.mesh.sequence.size > 1:
            return 1, f"the ranks share rows already (engine.sequence_ranks={self.mesh.sequence.size}). {otherwise}"
        reason = why_whole(learner.module)
        if reason:
            return 1, f"{reason}. {otherwise}"
        hosts = self.mesh.world.all_gather_object(socket.gethostname())
        legal = [number for number in legal_parts(learner.module, len(hosts)) if _within_hosts(hosts, number)]
        if not legal:
            return 1, f"no number divides heads, features and {len(hosts)} ranks, and leaves a copy on one host. {otherwise}"
        asked = self.settings.tensor_ranks
        if asked and asked not in legal:
            numbers = ", ".join(map(str, legal))
            return (
                1,
                f"legal are 0 (the largest) and {numbers}: divisors of ranks, heads and features, with a copy on one host.",
            )
        return asked or legal[-1], ""


def _within_hosts(hosts: Sequence[str], number: int) -> bool:
    """Whether each `number` consecutive ranks are on one host."""
    return all(len(set(hosts[first : first + number])) == 1 for first in range(0, len(hosts), number))


def _duration(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.1f} s"
