"""Useful share of token-time with rows as they come, packed, and dealt by their length: `python -m tests.benchmarks.balance`.

All ranks wait for the slowest one in every pass, so a pass takes as long as its largest rank, and the share is

    tokens of all rows / sum over passes of (ranks x the tokens that the slowest rank runs).

Lengths are made up after LLaVA's: 576 tokens of a picture, 30 around the texts, and texts of lognormal length (median 170,
sigma .95), cut at 2,048. No model runs: padded, a rank runs its rows times the longest of all ranks; packed, the sum of its
rows. Rows are dealt by `megaunigame.data.loading.dealing`, by their exact lengths, and by estimates whose texts are off by a
factor: one for all rows, and one for each.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from megaunigame.config import StreamConfig
from megaunigame.data.loading.dealing import Dealer
from megaunigame.data.loading.positions import StreamPositions
from megaunigame.data.sources.opening import open_stream
from megaunigame.step.amounts import Amounts
from megaunigame.step.requests import UNDERSTAND, RowRequest, StepPlan
from tests.benchmarks.loader import synthetic_set
from tests.benchmarks.recording import Cell, Table, run

FRAME, LONGEST = 576 + 30, 2048
BIAS, NOISE = 1.15, 0.15
"""Of an estimate: factor on all texts, and standard deviation of the logarithm of the factor on each."""


def texts(rng: np.random.Generator, rows: int) -> np.ndarray:
    """(rows,) tokens."""
    return rng.lognormal(np.log(170), 0.95, rows)


def shares(ranks: int, rows: int, accumulation: int, steps: int) -> dict[str, float]:
    """Way -> share, for `rows` on each rank in every micro-step."""
    rng, each = np.random.default_rng(0), accumulation * ranks * rows
    written = texts(rng, steps * each)
    exact = np.minimum(LONGEST, FRAME + np.rint(written)).astype(np.int64)
    wrong = BIAS * rng.lognormal(0, NOISE, len(written))
    estimated = np.minimum(LONGEST, FRAME + np.rint(written * wrong)).astype(np.int64)
    consecutive = exact.reshape(-1, ranks, rows)
    slowest = {
        "padded": rows * consecutive.max((1, 2)).sum(),
        "packed": consecutive.sum(2).max(1).sum(),
        "dealt, exact": slowest_of(exact, exact, ranks, rows, accumulation),
        "dealt, estimated": slowest_of(exact, estimated, ranks, rows, accumulation),
    }
    return {way: float(exact.sum() / (ranks * tokens)) for way, tokens in slowest.items()}


def slowest_of(exact: np.ndarray, told: np.ndarray, ranks: int, rows: int, accumulation: int) -> int:
    """Tokens of the slowest rank, summed over passes, of rows dealt by what is `told`."""
    plan = StepPlan((RowRequest("u", UNDERSTAND, "s", rows),)).with_spare_places()

    def amounts(stream: str, positions: range) -> Amounts:
        known = Amounts.empty(len(positions))
        known.json_bytes[:] = told[positions.start : positions.stop]
        return known

    positions = StreamPositions(plan, accumulation, ranks)
    dealer = Dealer(positions, lambda micro_step: plan, lambda request, known: known.json_bytes)
    total = 0
    for micro_step in range(len(exact) // (ranks * rows)):
        taken = dealer.dealing(micro_step, {"s": 0}, amounts).positions["u"]
        total += max(int(exact[of_rank].sum()) for of_rank in taken)
    return total


def costs(shards: int, samples: int) -> list[list[Cell]]:
    """Processor time to deal, with the lookups in the index of a large set."""
    lines: list[list[Cell]] = []
    with tempfile.TemporaryDirectory() as name:
        synthetic_set(Path(name), shards, samples)
        for ranks, rows, accumulation in ((32, 4, 1), (128, 1, 1), (128, 4, 1), (128, 4, 4), (1024, 4, 1)):
            plan = StepPlan((RowRequest("u", UNDERSTAND, "s", rows),)).with_spare_places()
            stream, positions = open_stream("s", StreamConfig(name), 0), StreamPositions(plan, accumulation, ranks)
            rng = np.random.default_rng(0)
            dealer = Dealer(
                positions, lambda m, plan=plan: plan, lambda r, known, rng=rng: FRAME + np.minimum(1442, texts(rng, len(known)))
            )
            stream.source.amounts(range(positions.per_step("s")), "")  # opens the indexes of a window
            lookups, whole = [], []
            for step in range(1, 6):
                began = time.process_time()
                for micro in range(accumulation):
                    request, number = plan.requests[0], step * accumulation + micro
                    stream.source.amounts(positions.of_all_ranks(request, number, 0), "")
                lookups.append(time.process_time() - began)
                began = time.process_time()
                dealer.dealing(step * accumulation, {"s": 0}, lambda _, p, stream=stream: stream.source.amounts(p, ""))
                whole.append(time.process_time() - began)
            milliseconds = [1e3 * float(np.median(times)) / accumulation for times in (lookups, whole)]
            lines.append([ranks, rows, accumulation, *milliseconds])
    return lines


def measure(options: argparse.Namespace) -> list[Table]:
    lines: list[list[Cell]] = []
    for ranks in (32, 128):
        for rows, accumulation in ((4, 1), (4, 4), (8, 1), (2, 4), (1, 1), (1, 16)):
            share_of = shares(ranks, rows, accumulation, -(-options.steps // accumulation))
            lines.append([ranks, rows, accumulation, *share_of.values()])
    about = ["ranks", "rows per rank", "micro-steps"]
    ways = ["padded", "packed", "dealt by exact lengths", "dealt by estimates"]
    spent = costs(shards=24, samples=5000)
    return [
        Table([*about, *ways], lines, "Useful share of token-time:"),
        Table([*about, "index, ms", "with dealing, ms"], spent, "Processor time of a loader worker per micro-step:"),
    ]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--steps", type=int, default=200)
    return made


if __name__ == "__main__":
    run(parser(), measure)
