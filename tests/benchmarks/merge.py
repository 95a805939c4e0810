"""Cost of a merge against the number of ranks: `python -m tests.benchmarks.merge`.

Rank 0 is real: its buffer plans, packs and unpacks records of full size. The losses of the other ranks are played from the
same plans, and what they would send arrives at once, so the time is all that a rank computes besides waiting. Losses are
drawn again for every merge; the hardest records of every rank are replayed in between and get easier.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch

from megaunigame.replay import hard_buffer
from megaunigame.replay.hard_buffer import HardBuffer
from megaunigame.replay.merge import MergePlan, plan_merge, share_of
from megaunigame.replay.records import RecordLayout
from tests.benchmarks.recording import Cell, Table, run
from tests.worlds import OneRank

CAPACITY, PERCENTILE, MERGES = 4096, 60, 12
REPLAYED, EASIER = 4, 0.9
LAYOUT = RecordLayout(image_size=384, max_length=512)


class PlayedRanks(OneRank):
    """The `world` of rank 0. Knows the loss table of all ranks, and keeps the plan that rank 0 makes."""

    def __init__(self, world_size: int):
        super().__init__(world_size)
        self.owned = np.full((world_size, share_of(CAPACITY, world_size)), np.nan, np.float32)
        self.mined = np.zeros((world_size, 0), np.float32)
        self.ledger = np.zeros(0, np.int64)
        self.moved_by_modulo = 0
        self.waited = 0.0

    def all_gather(self, line: torch.Tensor) -> torch.Tensor:
        start = time.perf_counter()
        table = np.concatenate([self.owned, self.mined], axis=1)
        np.testing.assert_array_equal(table[0], line.numpy())
        self.waited += time.perf_counter() - start
        return torch.from_numpy(table)

    def all_to_all(self, parts: Sequence[torch.Tensor], sizes: list[int]) -> list[torch.Tensor]:
        start = time.perf_counter()
        received = [torch.zeros(size, dtype=torch.uint8) for size in sizes]
        records = [record for part in received for record in part.numpy().view(LAYOUT.dtype)]
        for place, record in zip(self._coming(), records, strict=True):
            record["loss"] = self.plan.losses[place]
        self.waited += time.perf_counter() - start
        return received

    def _coming(self) -> np.ndarray:
        """Places of the records on their way to rank 0, in the order in which they arrive."""
        places = np.flatnonzero(self.plan.moving & (self.plan.owners == 0))
        return places[np.argsort(self.plan.holders[places], kind="stable")]

    def planned(self, plan: MergePlan) -> None:
        """Note a plan: where `i mod W` would have put its records, and what every rank owns after it."""
        self.plan = plan
        share = self.owned.shape[1]
        place = np.full((self.size, share), -1)
        place[self.ledger, np.arange(len(self.ledger)) // self.size] = np.arange(len(self.ledger))
        is_new = plan.columns >= share
        old_place = place[plan.holders[~is_new], plan.columns[~is_new]]
        holders = plan.holders.copy()
        holders[~is_new] = old_place % self.size
        self.moved_by_modulo = int((holders != np.arange(len(holders)) % self.size).sum())

    def settle(self) -> None:
        self.ledger = self.plan.owners
        self.owned[:] = np.nan
        self.owned[self.ledger, np.arange(len(self.ledger)) // self.size] = self.plan.losses

    def replay(self, buffer: HardBuffer) -> None:
        self.owned[:, :REPLAYED] *= np.float32(EASIER)
        indices = np.arange(min(REPLAYED, buffer.size))
        buffer.refresh(indices, buffer.losses[indices] * np.float32(EASIER))

    def mine(self, buffer: HardBuffer, slots: int, rng: np.random.Generator) -> None:
        self.mined = rng.gamma(2.0, 1.0, (self.size, slots)).astype(np.float32)
        for start in range(0, slots, buffer.rows):
            records = LAYOUT.empty(buffer.rows)
            records["loss"] = self.mined[0, start : start + buffer.rows]
            buffer.mine(records, np.ones(buffer.rows, bool))


def merges(world_size: int, candidates: int) -> list[Cell]:
    """A line of the table."""
    rng = np.random.default_rng(0)
    world = PlayedRanks(world_size)
    buffer = HardBuffer(LAYOUT, CAPACITY, candidates, 0, world_size)
    planning: list[float] = []

    def noted_plan(*arguments) -> MergePlan:
        start = time.perf_counter()
        plan = plan_merge(*arguments)
        planning.append(time.perf_counter() - start)
        world.planned(plan)
        world.waited += time.perf_counter() - start - planning[-1]
        return plan

    hard_buffer.plan_merge = noted_plan
    whole, moved, modulo, sent, entered = [], [], [], [], []
    for merge in range(MERGES + 1):
        # The first merge fills the buffer and is not counted.
        slots = candidates if merge else -(-share_of(CAPACITY, world_size) // candidates) * candidates
        world.replay(buffer)
        world.mine(buffer, slots, rng)
        world.waited, start = 0.0, time.perf_counter()
        report = buffer.merge(world, PERCENTILE if merge else 0, merge, 0)
        seconds = time.perf_counter() - start - world.waited
        world.settle()
        if merge:
            gathered = 4 * world_size * (share_of(CAPACITY, world_size) + candidates)
            whole.append(seconds)
            moved.append(report.moved)
            modulo.append(world.moved_by_modulo)
            sent.append(report.moved / world_size * LAYOUT.dtype.itemsize)
            entered.append(report.entered)
    plan_ms, merge_ms = statistics.median(planning[1:]) * 1e3, statistics.median(whole) * 1e3
    of_buffer = [statistics.mean(counts) / CAPACITY for counts in (entered, moved, modulo)]
    sizes = [gathered / 1024, statistics.mean(sent) / 2**20]
    return [world_size, candidates, plan_ms, merge_ms, *sizes, *(100 * share for share in of_buffer)]


def measure(options: argparse.Namespace) -> list[Table]:
    lines = []
    for world_size in (1, 2, 16, 128, 1024):
        for candidates in (8, 64):
            lines.append(merges(world_size, candidates))
            gc.collect()
    columns = ["ranks", "candidates per rank", "plan (ms)", "merge (ms)", "gathered per rank (KiB)", "sent per rank (MiB)"]
    picture = f"{LAYOUT.image_size} x {LAYOUT.image_size}"
    title = f"Capacity {CAPACITY}, {PERCENTILE}th percentile, {LAYOUT.dtype.itemsize:,} bytes a record (pictures of {picture}):"
    return [Table([*columns, "entered (%)", "moved (%)", "moved by i mod W (%)"], lines, title)]


def parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)


if __name__ == "__main__":
    run(parser(), measure)
