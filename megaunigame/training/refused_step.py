"""What follows a refused update, on all ranks together: look for the cause, keep the rows, warn or stop."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from megaunigame.data.loading.stream import SUBSTITUTES, MicroBatches
from megaunigame.data.sources.base import Backend
from megaunigame.engine.broken_weights import broken_weights
from megaunigame.engine.zero3 import Learner
from megaunigame.errors import CheckpointError, DataError, DivergenceError
from megaunigame.step.inputs import PassInputs
from megaunigame.step.micro import MicroStep, Step
from megaunigame.training import divergence_text, kept_rows
from megaunigame.training.assembly import Assembly
from megaunigame.training.divergence import Divergence
from megaunigame.training.divergence_text import SHOWN, Facts
from megaunigame.training.kept_rows import KeptPass, KeptRow, KeptStep

log = logging.getLogger(__name__)

RowLosses = Mapping[tuple[int, str], Tensor]
"""(micro-step, pass) -> (B,) loss sums of its rows."""


class RefusedSteps:
    """Called after every update that was refused."""

    def __init__(self, parts: Assembly, learner: Learner, divergence: Divergence):
        self.recipe, self.world, self.folder = parts.recipe, parts.mesh.world, parts.folder
        self.data_ranks = parts.mesh.data
        self.checkpoints = parts.checkpoints
        self.resumed_from = "" if parts.resumed_from is None else str(parts.resumed_from)
        self.learner, self.divergence = learner, divergence
        self.objective_of = {r.term: o.name for o in parts.objectives for r in o.rows()}
        self.objective_of |= {term: o.name for o in parts.objectives for term in o.added_terms(parts.plan)}
        self.terms = parts.plan.terms
        self.micro_batches: MicroBatches | None = None
        """Where the rows come from; without it samples are named, but not their place in the stream."""

    def handle(self, step: Step, losses: RowLosses) -> None:
        """Collective: warns on rank 0. Raises DivergenceError on all ranks when the budget is spent, a weight is broken, or
        nothing is learned any more."""
        refusal = self.divergence.refusal
        assert refusal is not None
        number, partitioned = step.number + 1, self.learner.zero_stage == 3
        weights = broken_weights(self.learner.module, self.world, partitioned) if refusal.is_broken else []
        broken = self._broken_rows(step, losses) if self.data_ranks.writes else []  # of ranks that share rows one tells them
        own = [f"{key or 'a row without a sample'} ({term})" for key, term in broken]
        room = kept_rows.has_room(self.folder, number)
        ends = bool(weights) or refusal.zeros > 0 or self.divergence.is_spent
        if ends:
            self._complete_the_save()
        newest = self.checkpoints.of_the_same_command(self.recipe.checkpoint.resume) if self.world.is_main else ""
        folder = kept_rows.step_folder(self.folder, number)
        stale = _clear(folder) if room and self.world.is_main else ""
        told = self.world.all_gather_object((own[:SHOWN], room, newest))  # no rank writes before the folder is empty
        samples, (_, room, newest) = [keys for keys, _, _ in told], told[0]  # rank 0 decides for all
        problem = self._keep(folder, step, losses, only_broken=any(samples)) if room else ""
        problems = [told for told in (stale, *self.world.all_gather_object(problem)) if told]  # `stale`: rank 0 tells them
        facts = Facts(number, samples, weights, str(folder) if room else "", problems, newest)
        if weights:
            raise DivergenceError(divergence_text.broken(facts, self.recipe, self.resumed_from))
        if refusal.zeros:
            raise DivergenceError(divergence_text.without_gradient(refusal, facts, self.divergence, self.recipe))
        if self.divergence.is_spent:
            raise DivergenceError(divergence_text.stopped(refusal, facts, self.divergence, self.objective_of, self.recipe))
        if self.world.is_main:
            log.warning(divergence_text.skipped(refusal, facts, self.divergence, self.objective_of))

    def warn(self, step: Step) -> None:
        """Name the spikes of a step whose update was made, on rank 0."""
        if self.divergence.warnings and self.world.is_main:
            said = divergence_text.spikes_text(self.divergence.warnings, self.objective_of)
            log.warning("Step %d has a spike: %s. To skip such updates, type divergence.on_spike=skip.", step.number + 1, said)

    def _broken_rows(self, step: Step, losses: RowLosses) -> list[tuple[str, str]]:
        """Sample and term of this rank's rows whose loss is not finite."""
        found = []
        for (micro, name), values in losses.items():
            inputs = step.micro_steps[micro].inputs[name]
            terms = self._terms(inputs)
            found += [(inputs.keys[row], terms[row]) for row, loss in enumerate(values.tolist()) if not math.isfinite(loss)]
        return found

    def _complete_the_save(self) -> None:
        """Collective: a save that is still being written was good, and is what the same command goes on from."""
        try:
            self.checkpoints.wait()
        except CheckpointError as error:  # on all ranks; the reason why the run ends is another one
            log.warning("%s", error)

    def _keep(self, folder: Path, step: Step, losses: RowLosses, *, only_broken: bool) -> str:
        """Write this rank's rows: of passes with a broken row, or of all passes. Returns a sentence about what is missing."""
        passes = []
        for (number, name), values in losses.items():
            if only_broken and all(math.isfinite(loss) for loss in values.tolist()):
                continue
            micro = step.micro_steps[number]
            inputs = micro.inputs[name]
            passes.append(KeptPass(number, inputs, self._described(step, micro, inputs, values.tolist())))
        if not passes or not self.data_ranks.writes:
            return ""
        kept = KeptStep(step.number + 1, self.data_ranks.rank, self.data_ranks.size, self.recipe.seed, passes)
        try:
            left = kept_rows.write(folder, kept)
        except OSError as error:  # one rank's: it must not leave the others waiting
            return f"The rows of rank {self.world.rank} could not be written ({error})."
        return f"{left} passes of rank {self.world.rank} were too large to keep." if left else ""

    def _described(self, step: Step, micro: MicroStep, inputs: PassInputs, losses: list[float]) -> list[KeptRow]:
        rows = []
        terms, counts = self._terms(inputs), inputs.counts.tolist()
        for row, (term, key) in enumerate(zip(terms, inputs.keys, strict=True)):
            stream, position, shard = self._place(step, micro, inputs.pass_name, row, term, key)
            objective = self.objective_of.get(term, "")
            rows.append(KeptRow(term, objective, key, stream, position, shard, str(losses[row]), counts[row] > 0))
        return rows

    def _place(self, step: Step, micro: MicroStep, name: str, row: int, term: str, key: str) -> tuple[str, int, str]:
        """Stream, position and shard of a row; ("", -1, "") for a row without a sample."""
        request = next(r for r in micro.plan.of_pass(name) if r.term == term)
        if request.stream is None or not key or self.micro_batches is None:
            return "", -1, ""
        batches = self.micro_batches
        stream = batches.streams[request.stream]
        accumulation = batches.positions.accumulation
        number = step.number * accumulation + micro.number - batches.first_micro_step
        index = row - micro.plan.rows_at(name, term).start
        try:
            position = batches.positions_of(request, number)[index]
        except (DataError, OSError) as error:
            log.warning("The place of sample %s is not known: %s", key, error)
            position = None
        if position is None:
            return stream.name, -1, ""
        if isinstance(stream.source, Backend) and not stream.source.exact:  # asking again would give another sample
            return stream.name, position, ""
        try:
            found = (stream.source.find(position, attempt) for attempt in range(1 + SUBSTITUTES))
            return stream.name, position, next((ref.shard for ref in found if ref.key == key), "")
        except (DataError, OSError) as error:
            log.warning("The shard of sample %s is not known: %s", key, error)
            return stream.name, position, ""

    def _terms(self, inputs: PassInputs) -> list[str]:
        return [self.terms[index] for index in inputs.terms.tolist()]


def _clear(folder: Path) -> str:
    """On rank 0: delete what an earlier launch kept. Returns a sentence about what is left of it."""
    try:
        kept_rows.clear(folder)
    except OSError as error:  # the step has broken, and the others wait
        return f"Rows of an earlier launch could not be deleted, and are mixed with these ({error})."
    return ""
