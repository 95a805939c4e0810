"""The samples of every step, noted by each rank of a launch."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megaunigame.training.stepping import Stepper

Keys = list[tuple[str, int, str]]
"""Pass, number of the term, key of the sample: of all rows of all ranks, by term; the rows of a term in the order in which the
stream deals them: by micro-step, then by rank."""


def note(file: str) -> None:
    """From now on, write a line with the keys of each step of this process."""
    fetch = Stepper._fetch

    @functools.wraps(fetch)
    def noted(stepper: Stepper, number: int, *rest: Any) -> Any:
        data = fetch(stepper, number, *rest)
        keys = [
            [
                (name, int(term), key)
                for name, inputs in micro.inputs.items()
                for term, key in zip(inputs.terms.tolist(), inputs.keys, strict=True)
            ]
            for micro in data.step.micro_steps
        ]
        with open(file, "a") as lines:
            lines.write(json.dumps([number, keys]) + "\n")
        return data

    Stepper._fetch = noted  # type: ignore[method-assign]


def steps_of(files: Sequence[Path]) -> dict[int, Keys]:
    """Step -> the keys of all ranks, of the steps whose samples every rank has."""
    ranks = [dict(map(json.loads, file.read_text().splitlines())) if file.exists() else {} for file in files]
    common = set(ranks[0]).intersection(*ranks[1:])
    return {step: _as_dealt([rank[step] for rank in ranks]) for step in common}


def _as_dealt(ranks: Sequence[Sequence[Sequence[tuple[str, int, str]]]]) -> Keys:
    """`ranks`: rank -> micro-step -> its rows."""
    rows = [tuple(row) for micro_steps in zip(*ranks, strict=True) for of_rank in micro_steps for row in of_rank]
    return sorted(rows, key=lambda row: row[:2])  # stable
