"""What is replayed, under different ways of drawing: how many different pictures, and how many with a wrong label.

python -m tests.benchmarks.replay

A model of mining, no training: every step mines 4 pictures and replays 1 or 2, a merge every 10 steps lets in the 60th
percentile, and the buffer holds 512. 15 % of the mined pictures have a wrong label, which costs 3 nats more; a replay lowers
the loss of a picture to 30 %, and that of a wrong label to 97 %: it can be memorized only. Undisturbed, such a picture is
answered wrongly in 9 of 10 cases, and has all but a tenth of those 3 nats.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass

import numpy as np

from megaunigame.replay.hard_buffer import HardBuffer
from megaunigame.replay.records import RecordLayout
from tests.benchmarks.recording import Cell, Table, run
from tests.worlds import OneRank

STEPS, ROWS, MERGE_EVERY, CAPACITY, PERCENTILE = 2000, 4, 10, 512, 60.0
WRONG, MORE = 0.15, 3.0
LEARNED, MEMORIZED = 0.3, 0.97
NOTICED, EXPLAINED = 0.9, 0.9


@dataclass(frozen=True)
class Way:
    """Settings of `objectives.unigame.buffer`."""

    draw: str
    temperature: int
    max_age: int = 0
    hardness: str = "loss"
    label_check: bool = False
    rows: int = 2
    """Replayed in every step."""


WAYS = [
    Way("keep", 2),
    Way("keep", 2, 100),
    Way("keep", 50, 100),
    Way("remove", 2),
    Way("remove", 50),
    Way("remove", 50, hardness="gap"),
    Way("remove", 50, label_check=True),
    Way("remove", 50, 0, "gap", True),
    Way("remove", 2, rows=1),
    Way("remove", 50, hardness="gap", rows=1),
    Way("remove", 50, 100, "gap", True, rows=1),
]


def replayed(way: Way) -> tuple[list[int], set[int], float]:
    """Numbers of the replayed pictures in order, all numbers with a wrong label, and the share of hard rows left empty."""
    rng, layout = np.random.default_rng(0), RecordLayout(image_size=1, max_length=1)
    buffer = HardBuffer(layout, CAPACITY, ROWS, 0, 1)
    wrong: set[int] = set()
    drawn: list[int] = []
    for step in range(STEPS):
        indices = buffer.draw(way.rows, way.temperature, rng, remove=way.draw == "remove")
        held = buffer.records(indices)
        numbers = held["tokens"][:, 0].tolist()
        drawn += numbers
        kept = np.array([MEMORIZED if number in wrong else LEARNED for number in numbers])
        buffer.refresh(indices, (held["loss"] + held["reference"]) * kept)

        records = layout.empty(ROWS)
        records["tokens"][:, 0] = step * ROWS + np.arange(ROWS)
        records["step"] = step
        is_wrong = rng.random(ROWS) < WRONG
        wrong |= set(records["tokens"][is_wrong, 0].tolist())
        losses = rng.gamma(2.0, 0.3, ROWS) + MORE * is_wrong
        if way.hardness == "gap":
            records["reference"] = EXPLAINED * MORE * is_wrong
        records["loss"] = losses - records["reference"]
        noticed = is_wrong & (rng.random(ROWS) < NOTICED)
        buffer.mine(records, ~noticed if way.label_check else np.ones(ROWS, bool))
        if (step + 1) % MERGE_EVERY == 0:
            buffer.merge(OneRank(), PERCENTILE, step, way.max_age)
    return drawn, wrong, 1 - len(drawn) / (STEPS * way.rows)


def measure(options: argparse.Namespace) -> list[Table]:
    columns = ["hard rows", "draw", "temperature", "max_age", "hardness", "label check"]
    columns += ["distinct (%)", "most often", "wrong labels (%)", "empty rows (%)"]
    lines: list[list[Cell]] = []
    for way in WAYS:
        drawn, wrong, empty = replayed(way)
        most = Counter(drawn).most_common(1)[0][1]
        distinct, bad = len({*drawn}) / len(drawn), sum(number in wrong for number in drawn) / len(drawn)
        settings = [way.rows, way.draw, way.temperature, way.max_age or "-", way.hardness, "yes" if way.label_check else "no"]
        lines.append([*settings, *(round(number) for number in (100 * distinct, most, 100 * bad, 100 * empty))])
    return [Table(columns, lines)]


def parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)


if __name__ == "__main__":
    run(parser(), measure)
