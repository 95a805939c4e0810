"""How an evaluation gets the weights: gathered once for all its suites, divided while a suite draws, or gathered in every call.

A picture that is drawn token by token takes hundreds of calls. What the gathers of all pictures will take is said before the
first step, and a launch that would spend more than its recipe allows is refused there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

from megaunigame.config import AUTO, EACH_CALL, ONCE, TENSOR_PARALLEL, EvaluationConfig
from megaunigame.engine.capacity import memory_of
from megaunigame.engine.memory_plan import short_bytes
from megaunigame.engine.tensor_parallel import divided_bytes, divided_weights, fits_divided, legal_parts, why_whole
from megaunigame.engine.whole_weights import fits_whole, gather_seconds, whole_bytes, whole_weights
from megaunigame.engine.zero3 import Learner
from megaunigame.errors import ConfigError
from megaunigame.evaluation.suites.base import Suite
from megaunigame.parallel.mesh import Mesh
from megaunigame.parallel.ranks import Ranks


class SuiteWeights:
    """The weights of the evaluations of one launch."""

    def __init__(self, settings: EvaluationConfig, mesh: Mesh):
        self.settings, self.mesh = settings, mesh
        self._divided: Mesh | None = None
        """Groups of ranks are made once."""

    def way(self, learner: Learner) -> str:
        """Collective: `once`, `tensor_parallel` or `each_call`; also `each_call` under ZeRO-2, where weights are whole."""
        if not whole_bytes(learner):
            return EACH_CALL
        if self.settings.gather != AUTO:
            return self.settings.gather
        if fits_whole(learner, self.settings.gather_share):
            return ONCE
        number, _ = self._parts(learner)
        return TENSOR_PARALLEL if number > 1 and fits_divided(learner, number, self.settings.gather_share) else EACH_CALL

    def for_all(self, learner: Learner, way: str) -> contextlib.AbstractContextManager[None]:
        """Collective: the context in which all suites run, one after another."""
        return whole_weights(learner) if way == ONCE else contextlib.nullcontext()

    @contextlib.contextmanager
    def for_one(self, learner: Learner, way: str, suite: Suite) -> Iterator[Ranks]:
        """Collective: the context in which one suite runs, on these data ranks. Divided if it draws; the others make few
        calls, and may measure attention, of which a rank would have some heads."""
        if way != TENSOR_PARALLEL or not suite.drawings(self.mesh.data.size):
            yield self.mesh.data
            return
        divided = self._divided_mesh(learner)
        with divided_weights(learner, divided.sequence):
            yield divided.data

    def check_drawing(self, learner: Learner, suites: Iterable[Suite], say: Callable[[str], None]) -> None:
        """Collective, before the first evaluation: say what the gathers for its pictures will take, if it draws some.

        Raises ConfigError on every rank when that is more than `evaluation.most_drawing_hours`, and for weights that cannot be
        divided.
        """
        calls = sum(suite.drawings(self.mesh.data.size) for suite in suites) * learner.module.calls_per_sample
        if not calls or not whole_bytes(learner):
            return
        way = self.way(learner)
        if way == TENSOR_PARALLEL:
            number = self._divided_mesh(learner).sequence.size
            say(
                f"suites that draw divide the weights over {number} ranks, which draw the same pictures together: "
                f"{short_bytes(divided_bytes(learner, number))} a rank"
            )
        if way != EACH_CALL:
            return
        hours = calls * gather_seconds(learner) / 3600
        what = f"drawing the pictures of an evaluation takes {calls:,} calls of each rank, and each gathers the weights"
        size = short_bytes(whole_bytes(learner))
        say(f"{what} ({size}): at least {_duration(hours)} in all")
        if 0 < self.settings.most_drawing_hours < hours:
            raise ConfigError(
                f"evaluation.most_drawing_hours={self.settings.most_drawing_hours:g}, but {what}: {size}, {_duration(hours)} "
                "in all, by a gather that was timed. Type a smaller `limit` of the suites that draw, evaluation.gather=once if "
                "the weights fit whole on every rank, evaluation.gather=tensor_parallel if they fit on the ranks of a node "
                "together, or a larger evaluation.most_drawing_hours. Or leave these suites out, and draw from an export "
                "(docs/evaluation.md)."
            )

    def _divided_mesh(self, learner: Learner) -> Mesh:
        if self._divided is None:
            number, problem = self._parts(learner)
            if problem:
                raise ConfigError(f"evaluation.gather=tensor_parallel: {problem} Type evaluation.gather=once, or each_call.")
            self._divided = Mesh.of(self.mesh.world, number)
        return self._divided

    def _parts(self, learner: Learner) -> tuple[int, str]:
        """Collective: the number of parts, and why the weights are not divided. The same on all ranks."""
        if self.mesh.sequence.size > 1:
            return 1, f"the ranks share rows already (engine.sequence_ranks={self.mesh.sequence.size})."
        reason = why_whole(learner.module)
        if reason:
            return 1, f"{reason}."
        per_node = {memory.ranks for memory in self.mesh.world.all_gather_object(memory_of(self.mesh.world))}
        if len(per_node) > 1:
            return 1, f"nodes have different numbers of ranks ({', '.join(map(str, sorted(per_node)))})."
        ranks = self.settings.tensor_ranks or per_node.pop()
        legal = legal_parts(learner.module, self.mesh.world.size)
        if self.settings.tensor_ranks and ranks not in legal:
            numbers = ", ".join(map(str, legal)) or "none"
            return 1, f"evaluation.tensor_ranks={ranks} does not divide ranks, heads and features. Legal: {numbers}."
        number = max((each for each in legal if ranks % each == 0), default=1)
        return number, "" if number > 1 else f"no number above 1 divides the {ranks} ranks of a node, heads and features."


def _duration(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.1f} s"
