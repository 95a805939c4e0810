"""Before the passes of a step: are all ranks about to make the same ones?

A rank with another plan would wait in a collective that no other rank enters, or exchange other weights than they do. What
must be equal is what decides the calls: the number of the step, its learning rate, its micro-steps, and the rows of each of
their passes, aside ones included; and how samples were dealt over the ranks, else some would be lost. The data need not be:
lengths of rows, numbers of pictures, keys and bad samples differ. Only ranks that share their rows must have the same ones.
"""

from __future__ import annotations

import hashlib

from megaunigame.errors import LockstepError
from megaunigame.parallel.beats import spelled
from megaunigame.parallel.ranks import Ranks
from megaunigame.step.inputs import PassInputs
from megaunigame.step.micro import MicroStep, Step

HASH_BYTES = 7
"""A hash is below 2^56, so that it and its negative are numbers of 64 bits."""


class LockstepGuard:
    """One all-reduce of 8 numbers per step, on the host; and one of 2 where ranks share their rows."""

    def __init__(self, world: Ranks, sequence: Ranks | None = None):
        """`sequence`: ranks that share their rows; None: none do."""
        self.world, self.sequence = world, sequence

    def check(self, step: Step) -> None:
        """Collective. Raises LockstepError on every rank, naming what each is about to do, when they are not the same."""
        smallest, largest = self.world.bounds(_numbers(step))
        if smallest != largest:
            raise LockstepError(_disagreement(self.world.all_gather_object(described(step))))
        if self.sequence is not None and self.sequence.size > 1:
            self._check_shared(step, self.sequence)

    def _check_shared(self, step: Step, sequence: Ranks) -> None:
        """Collective: ranks that share their rows have the same. Raises LockstepError on all ranks."""
        rows = [_rows(inputs) for micro in step.micro_steps for inputs in (*micro.inputs.values(), *micro.aside.values())]
        smallest, largest = sequence.bounds([_hash("\n".join(rows))])
        if self.world.any(smallest != largest):
            raise LockstepError(
                f"Ranks that share their rows (engine.sequence_ranks={sequence.size}) have read different ones for step "
                f"{step.number + 1}: one could not read a sample that another could. Look at the warnings of each rank about "
                "its data. The run resumes from its newest checkpoint with the same command."
            )


def _numbers(step: Step) -> list[int]:
    return [step.number, len(step.micro_steps), sum(len(m.inputs) for m in step.micro_steps), _hash("\n".join(described(step)))]


def described(step: Step) -> list[str]:
    """A line about the step, and one about each micro-step."""
    return [f"step {step.number + 1}, lr {step.lr!r}", *map(_described, step.micro_steps)]


def _described(micro: MicroStep) -> str:
    rows = {name: len(inputs.counts) for name, inputs in micro.inputs.items()}
    aside = {name: len(inputs.counts) for name, inputs in micro.aside.items()}
    asked = {r.term: (r.pass_name, r.stream, r.count) for r in micro.plan.requests}
    return f"micro-step {micro.number}: passes {rows}, aside {aside}, terms {asked}, samples dealt {micro.dealing:08x}"


def _rows(inputs: PassInputs) -> str:
    """Of one pass: the shape of its tokens, and the samples they are of."""
    return f"{inputs.pass_name} {tuple(inputs.tokens.shape)} {inputs.keys}"


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:HASH_BYTES], "big")


def _disagreement(everywhere: list[list[str]]) -> str:
    """Each rank's first line that is not that of all ranks."""
    longest = max(map(len, everywhere))
    padded = [lines + ["no such micro-step"] * (longest - len(lines)) for lines in everywhere]
    place = next((i for i in range(longest) if len({lines[i] for lines in padded}) > 1), 0)
    said: dict[str, list[int]] = {}
    for rank, lines in enumerate(padded):
        said.setdefault(lines[place], []).append(rank)
    parts = "; ".join(f"{spelled(ranks)}: {text}" for text, ranks in said.items())
    return (
        f"The ranks are about to make different steps, of which none was begun. {parts}. The data must not decide this: look "
        "for what differs between these ranks (code, recipe, clock, files they alone read). The run resumes from its newest "
        "checkpoint with the same command."
    )
