"""A random game of mining and replaying, and one list that plays it alone."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from megaunigame.replay.hard_buffer import HardBuffer, MergeReport
from megaunigame.replay.records import RecordLayout, encode_key

LAYOUT = RecordLayout(image_size=2, max_length=3)


@dataclass(frozen=True)
class Candidate:
    number: int
    loss: float
    accepted: bool


@dataclass(frozen=True)
class Round:
    """What happens between two merges: candidates in the order of the data stream, then replayed records."""

    candidates: list[Candidate]
    replayed: dict[int, float]
    """Number of a record -> its new loss, for those that are in the buffer."""
    spent: frozenset[int] = frozenset()
    """Numbers of records that were replayed for the last time, if they are in the buffer."""


@dataclass(frozen=True)
class Game:
    rows: int
    capacity: int
    percentile: int
    max_age: int
    rounds: list[Round]


def random_game(seed: int, world_size: int, rounds: int = 4) -> Game:
    """Few different losses (so many ties), some of them not finite, some rejected, and now and then a rank with nothing."""
    rng = np.random.default_rng(seed)
    rows, capacity = int(rng.integers(1, 4)), int(rng.integers(1, 16))
    levels = [*(np.arange(rng.integers(1, 8)) / 4), np.nan, np.inf]
    numbers, played = 0, []
    for _ in range(rounds):
        calls = int(rng.integers(1, 3))
        idle = rng.random(world_size) < 0.2
        count = calls * world_size * rows
        ranks = np.arange(count) // rows % world_size
        losses, accepted = rng.choice(levels, count), (rng.random(count) < 0.8) & ~idle[ranks]
        candidates = [Candidate(numbers + i, float(losses[i]), bool(accepted[i])) for i in range(count)]
        numbers += count
        replayed = {int(n): float(rng.choice(levels)) for n in rng.choice(numbers, numbers // 4, replace=False)}
        spent = frozenset(rng.choice(numbers, numbers // 3, replace=False).tolist())
        played.append(Round(candidates, replayed, spent))
    # Of these percentiles every multiple is exact or below in binary, as the fractions of `play_alone` are.
    percentile = int(rng.choice([0, 25, 50, 60, 75, 90]))
    return Game(rows, capacity, percentile, int(rng.integers(0, 3)), played)


def records_of(candidates: list[Candidate], step: int) -> tuple[np.ndarray, np.ndarray]:
    """(records, accepted); every field of a record follows from its number, so that a torn one shows."""
    records = LAYOUT.empty(len(candidates))
    for record, candidate in zip(records, candidates, strict=True):
        n = candidate.number
        record["image"], record["tokens"], record["segments"], record["length"] = n % 251, [n, 2 * n, -n], [n, 1, 0], n % 4
        record["labelled"], record["slots"] = [n % 2, 1, 0], [0, 0, n % 3 == 0]
        record["loss"], record["similarity"], record["step"] = candidate.loss, n / 7, step
        record["key"] = encode_key(f"sample-{n}")
    return records, np.array([candidate.accepted for candidate in candidates])


def numbers_of(records: np.ndarray) -> list[int]:
    """The numbers of whole records; fails on a record whose fields do not belong together."""
    for record in records:
        (whole,), _ = records_of([Candidate(int(record["tokens"][0]), float(record["loss"]), True)], int(record["step"]))
        for count in ("drawn", "spent"):  # these do not follow from the number
            whole[count] = record[count]
        assert record == whole
    return records["tokens"][:, 0].tolist()


def new_buffer(game: Game, rank: int, world_size: int) -> HardBuffer:
    return HardBuffer(LAYOUT, game.capacity, game.rows, rank, world_size)


def held_numbers(buffer: HardBuffer) -> list[int]:
    return numbers_of(buffer.records(np.arange(buffer.size)))


def mine_share(buffer: HardBuffer, candidates: list[Candidate], step: int) -> None:
    """This rank's rows of all micro-steps."""
    turn = buffer.rows * buffer.ranks
    assert len(candidates) % turn == 0
    for start in range(buffer.rank * buffer.rows, len(candidates), turn):
        buffer.mine(*records_of(candidates[start : start + buffer.rows], step))


def play_round(buffer: HardBuffer, game: Game, step: int, world: Any) -> MergeReport:
    """Replay, mine, merge."""
    replay(buffer, game.rounds[step])
    mine_share(buffer, game.rounds[step].candidates, step)
    return buffer.merge(world, game.percentile, step, game.max_age)


def replay(buffer: HardBuffer, round_: Round) -> None:
    """What the round does with the records of this rank."""
    held = held_numbers(buffer)
    replayed = np.array([i for i, number in enumerate(held) if number in round_.replayed], np.int64)
    buffer.refresh(replayed, np.array([round_.replayed[held[i]] for i in replayed]))
    spent = [i for i, number in enumerate(held) if number in round_.spent]
    buffer._memory["spent"][buffer._places[spent]] = True


@dataclass
class Held:
    number: int
    loss: float
    step: int


def play_alone(game: Game) -> list[tuple[list[int], float, tuple[int, ...]]]:
    """After every round: kept numbers (hardest first), threshold, (candidates, accepted, kept, entered, left)."""
    held: list[Held] = []
    story: list[tuple[list[int], float, tuple[int, ...]]] = []
    for step, round_ in enumerate(game.rounds):
        for one in held:
            loss = round_.replayed.get(one.number, one.loss)
            one.loss = loss if np.isfinite(loss) else one.loss
        new = [Held(c.number, c.loss, step) for c in round_.candidates if c.accepted and np.isfinite(c.loss)]
        threshold = _quantile([one.loss for one in new], game.percentile)
        passed = [one for one in new if one.loss >= threshold]
        before = {one.number for one in held}
        left = [one for one in held if one.number not in round_.spent]
        young = [one for one in left if not game.max_age or step - one.step <= game.max_age]
        held = sorted(young + passed, key=lambda one: -one.loss)[: game.capacity]
        after = {one.number for one in held}
        counts = (len(new), len(passed), len(held), len(after - before), len(before - after))
        story.append(([one.number for one in held], float(threshold), counts))
    return story


def _quantile(losses: list[float], percentile: int) -> Fraction | float:
    """The exact value, linear between neighbors."""
    if not losses:
        return float("nan")
    ordered = [Fraction(loss) for loss in sorted(losses)]
    position = Fraction(percentile, 100) * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def check_round(held: list[list[int]], report: MergeReport, expected: tuple[list[int], float, tuple[int, ...]]) -> None:
    """`held[r]`: numbers on rank r, in index order. Block j of the order is the j-th record of every rank that has one."""
    numbers, threshold, counts = expected
    size = len(held)
    for block, start in enumerate(range(0, len(numbers), size)):
        there = [mine[block] for mine in held if len(mine) > block]
        assert sorted(there) == sorted(numbers[start : start + size])
    assert sum(map(len, held)) == len(numbers)
    assert (report.candidates, report.accepted, report.kept, report.entered, report.left) == counts
    np.testing.assert_allclose(report.threshold, threshold, rtol=1e-12)
