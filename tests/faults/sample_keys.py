"""The samples of every step, noted by each rank of a launch."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megaunigame.training.stepping import Stepper

Keys = list[tuple[str, int, str]]
"""Pass, number of the term, key of the sample: sorted, of all rows of all ranks."""


def note(file: str) -> None:
    """From now on, write a line with the keys of each step of this process."""
    fetch = Stepper._fetch

    @functools.wraps(fetch)
    def noted(stepper: Stepper, number: int, *rest: Any) -> Any:
        data = fetch(stepper, number, *rest)
        keys = [
            (name, int(term), key)
            for micro in data.step.micro_steps
            for name, inputs in micro.inputs.items()
            for term, key in zip(inputs.terms.tolist(), inputs.keys, strict=True)
        ]
        with open(file, "a") as lines:
            lines.write(json.dumps([number, keys]) + "\n")
        return data

    Stepper._fetch = noted  # type: ignore[method-assign]


def steps_of(files: Sequence[Path]) -> dict[int, Keys]:
    """Step -> the keys of all ranks, of the steps that every rank has begun."""
    ranks = [dict(map(json.loads, file.read_text().splitlines())) if file.exists() else {} for file in files]
    common = set(ranks[0]).intersection(*ranks[1:])
    return {step: sorted((name, term, key) for rank in ranks for name, term, key in rank[step]) for step in common}
