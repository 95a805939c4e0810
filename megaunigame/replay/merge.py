"""Which rank keeps which records after a merge: a pure function of the losses of all ranks, computed alike on each of them.

Losses travel as one table (W, K + C), one line per rank: the losses of the records it holds in K = ceil(capacity / W)
columns, then those of the C = calls * rows candidates it has mined since the last merge; NaN means "nothing here". The kept
records, hardest first, are cut into blocks of W; every rank owns exactly one record of a full block. Its j-th record is
therefore the one of block j, and the ledger (owner of every record in order) tells where each old record is.

The kept records do not depend on W, ties included: among equal losses, old records come first, in the order of the last
merge, then new ones by position in the data stream, whose order is (micro-step, rank, row). W ranks with `a` micro-steps each
see the same sequence as one rank with a * W.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class CandidateGrid:
    """Positions in the data stream against (rank, number): candidate n of a rank is row `n % rows` of its call `n // rows`."""

    ranks: int
    rows: int

    def position(self, rank: int, numbers: np.ndarray) -> np.ndarray:
        calls, row = np.divmod(numbers, self.rows)
        return (calls * self.ranks + rank) * self.rows + row

    def place(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(ranks, numbers) of those positions."""
        micro_step, row = np.divmod(positions, self.rows)
        call, rank = np.divmod(micro_step, self.ranks)
        return rank, call * self.rows + row

    def calls(self, positions: int) -> int:
        """Calls needed to deal out that many positions."""
        return -(-positions // (self.ranks * self.rows))


@dataclass(frozen=True)
class MergePlan:
    """The n kept records, hardest first."""

    threshold: float
    """Percentile of the new losses; NaN without candidates."""
    candidates: int
    """New losses on all ranks."""
    accepted: int
    """New losses at or above the threshold."""
    entered: int
    """New records among the n."""
    left: int
    """Old records that are not among the n: too old, or displaced by harder ones."""
    losses: np.ndarray
    """(n,) float64."""
    holders: np.ndarray
    """(n,) int64: rank that has the record now."""
    columns: np.ndarray
    """(n,) int64: its column in the holder's line of the table."""
    owners: np.ndarray
    """(n,) int64: rank that shall have it. The ledger of the next merge."""

    @property
    def moving(self) -> np.ndarray:
        """(n,) bool: holder and owner differ."""
        return self.holders != self.owners


def share_of(capacity: int, ranks: int) -> int:
    """K: the most records one rank can own."""
    return -(-capacity // ranks)


def plan_merge(table: np.ndarray, ledger: np.ndarray, rows: int, capacity: int, percentile: float) -> MergePlan:
    """Choose the kept records and deal them out.

    `table` (W, K + C) float; `ledger` (m,) the owners after the last merge; `rows` candidates per call of each rank;
    `percentile` in [0, 100) of the new losses, interpolated linearly. New records at or above it and all old ones compete by
    loss.
    """
    # In float64 throughout: a threshold rounded to float32 could fall on the wrong side of the loss it came from.
    table = table.astype(np.float64)
    ranks, columns = table.shape
    share = share_of(capacity, ranks)

    old_column = np.arange(len(ledger)) // ranks
    new_rank, new_number = CandidateGrid(ranks, rows).place(np.arange(ranks * (columns - share)))
    holders = np.concatenate([ledger, new_rank])
    columns_of = np.concatenate([old_column, share + new_number])
    losses = table[holders, columns_of]

    is_new = columns_of >= share
    present = np.isfinite(losses)
    new_losses = losses[is_new & present]
    threshold = float(np.percentile(new_losses, percentile)) if len(new_losses) else float("nan")
    survivors = np.flatnonzero(present & (~is_new | (losses >= threshold)))

    # Survivors are in the order that breaks ties, and a stable sort keeps it among equals.
    kept = survivors[np.argsort(-losses[survivors], kind="stable")][:capacity]
    entered = int(is_new[kept].sum())
    return MergePlan(
        threshold=threshold,
        candidates=len(new_losses),
        accepted=int(is_new[survivors].sum()),
        entered=entered,
        left=len(ledger) - (len(kept) - entered),
        losses=losses[kept],
        holders=holders[kept],
        columns=columns_of[kept],
        owners=deal(holders[kept], ranks),
    )


def deal(holders: np.ndarray, ranks: int) -> np.ndarray:
    """(n,) holders, hardest record first -> (n,) owners: each rank once per block of W, with the fewest moves.

    A record stays where it is, unless a harder one of its block is there too; the others go to the ranks left over, in rank
    order. Dealing record i to rank `i mod W` would also balance difficulty, but one record that enters at the top would shift
    all below it, and nearly the whole buffer would change rank at every merge. Here it shifts at most one record per block.
    """
    seats = np.arange(len(holders)) // ranks * ranks + holders  # block and rank in one number
    taken, stays = np.unique(seats, return_index=True)  # the first, hence hardest, record of each seat
    blocks = -(-len(holders) // ranks)
    free = np.setdiff1d(np.arange(blocks * ranks), taken, assume_unique=True)
    moves = np.ones(len(holders), bool)
    moves[stays] = False
    owners = holders.copy()
    # Both are in block order, and a full block has as many free seats as moves. Only a last block that is not full leaves
    # seats over, at the end.
    owners[moves] = free[: moves.sum()] % ranks
    return owners
