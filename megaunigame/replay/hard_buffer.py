"""The hard buffer: a replay buffer of the adversarial examples with the highest learner loss, divided evenly among the ranks.

Each rank mines candidates. A merge takes in the hardest of all ranks (see :mod:`megaunigame.replay.merge`): one all-gather of
losses, then one all-to-all of the few records that change rank. Every rank makes both calls at every merge, with sizes that
all ranks know.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from megaunigame.errors import CheckpointError
from megaunigame.parallel.ranks import Ranks
from megaunigame.replay.drawing import draw_logits
from megaunigame.replay.files import FILE, HEADER, SavedShape, file_of, saved_shape
from megaunigame.replay.merge import CandidateGrid, MergePlan, plan_merge, share_of
from megaunigame.replay.records import RecordLayout
from megaunigame.storage.pending import PendingFile


@dataclass(frozen=True)
class MergeReport:
    """Result of one merge. All numbers but `bytes` are over all ranks."""

    threshold: float
    """Percentile of the new losses; NaN when there was no candidate."""
    candidates: int
    accepted: int
    """Candidates at or above the threshold."""
    kept: int
    """Records in the buffer now."""
    entered: int
    left: int
    moved: int
    """Records that changed rank."""
    bytes: int
    """Bytes this rank gathered (losses of all ranks) and sent (records)."""


class HardBuffer:
    """This rank's part of the records, and the candidates it has mined since the last merge.

    Records are numpy arrays of `layout.dtype`. An index is that of a record of this rank, hardest first at the last merge; it
    is valid until the next merge. A spent record keeps its index, is not drawn, and leaves at the next merge as a record
    without a loss: so every rank removes what it likes between two merges, and all still agree on the ledger.
    """

    def __init__(self, layout: RecordLayout, capacity: int, rows: int, rank: int, ranks: int):
        """`capacity`: records over all ranks; `rows`: candidates in every call of `mine`."""
        self.layout, self.capacity, self.rows, self.rank, self.ranks = layout, capacity, rows, rank, ranks
        self._share = share_of(capacity, ranks)
        self._memory = layout.empty(self._share)
        self._clear()

    def _clear(self) -> None:
        self._places = np.zeros(0, np.int64)
        """Index -> position in `_memory`, so that a record that stays is not copied."""
        self._ledger = np.zeros(0, np.int64)
        """Owner of every record of the last merge, hardest first; the same on all ranks."""
        self._candidates: dict[int, np.ndarray] = {}
        """Number (call * rows + row) -> (1,) record."""
        self._calls = 0

    @property
    def most_bytes(self) -> int:
        """Host memory of this rank when it owns as many records as it can."""
        return self._share * self.layout.dtype.itemsize

    @property
    def indices(self) -> np.ndarray:
        """(size,) int64: this rank's records that are not spent."""
        return np.flatnonzero(~self._memory["spent"][self._places])

    @property
    def size(self) -> int:
        """Records of this rank that are not spent."""
        return len(self.indices)

    @property
    def losses(self) -> np.ndarray:
        """(n,) float32: the latest known loss of each record by index, spent ones included."""
        return self._memory["loss"][self._places]

    def mean_age(self, step: int) -> float:
        """Optimizer steps since this rank's records were mined; NaN when it has none."""
        return float((step - self._memory["step"][self._places[self.indices]]).mean()) if self.size else float("nan")

    def mine(self, records: np.ndarray, accepted: np.ndarray) -> int:
        """Offer the (rows,) records of one micro-step, in row order; `accepted` (rows,) bool is the result of the filter.

        Every rank calls this equally often between two merges, if need be with nothing accepted. Returns how many accepted
        records were dropped because their loss is not finite.
        """
        if len(records) != self.rows:
            raise ValueError(f"mine() got {len(records)} rows; this buffer takes {self.rows} in every micro-step")
        finite = np.isfinite(records["loss"])
        for row in np.flatnonzero(accepted & finite).tolist():
            self._candidates[self._calls * self.rows + row] = records[row : row + 1].copy()
        self._calls += 1
        return int((accepted & ~finite).sum())

    def merge(self, data_ranks: Ranks, percentile: float, step: int, max_age: int) -> MergeReport:
        """Collective: take in the candidates at or above the `percentile` in [0, 100) of all ranks' new losses, hardest first.

        Records mined more than `max_age` steps before `step` leave (0: no limit). Clears the candidates.
        """
        table = data_ranks.all_gather(torch.from_numpy(self._line(step, max_age)).to(data_ranks.device)).cpu().numpy()
        plan = plan_merge(table, self._ledger, self.rows, self.capacity, percentile)
        sent, received = self._exchange(data_ranks, plan)
        self._settle(plan, received)
        return MergeReport(
            threshold=plan.threshold,
            candidates=plan.candidates,
            accepted=plan.accepted,
            kept=len(plan.owners),
            entered=plan.entered,
            left=plan.left,
            moved=int(plan.moving.sum()),
            bytes=table.nbytes + sent,
        )

    def rehearse(self, data_ranks: Ranks) -> None:
        """Collective: the calls of a merge, with a byte between any two ranks, so that connections are opened, and take their
        memory, before step 1. Changes nothing."""
        data_ranks.all_gather(torch.zeros(self._share + self.rows, device=data_ranks.device))
        data_ranks.all_to_all(
            [torch.zeros(1, dtype=torch.uint8, device=data_ranks.device)] * data_ranks.size, [1] * data_ranks.size
        )

    def _line(self, step: int, max_age: int) -> np.ndarray:
        """(K + C,) float32: this rank's line of the table of losses."""
        line = np.full(self._share + self._calls * self.rows, np.nan, np.float32)
        leaving = self._memory["spent"][self._places]
        if max_age:
            leaving = leaving | (step - self._memory["step"][self._places] > max_age)
        line[: len(leaving)] = np.where(leaving, np.float32(np.nan), self.losses)
        for number, record in self._candidates.items():
            line[self._share + number] = record["loss"][0]
        return line

    def _exchange(self, data_ranks: Ranks, plan: MergePlan) -> tuple[int, list[Tensor]]:
        """Send the records that other ranks shall own: (bytes sent, bytes of the records from each rank, hardest first)."""
        record = self.layout.dtype.itemsize
        leaving = np.flatnonzero(plan.moving & (plan.holders == self.rank))
        leaving = leaving[np.argsort(plan.owners[leaving], kind="stable")]
        coming = np.flatnonzero(plan.moving & (plan.owners == self.rank))
        out_sizes = np.bincount(plan.owners[leaving], minlength=self.ranks) * record
        in_sizes = np.bincount(plan.holders[coming], minlength=self.ranks) * record
        packed = np.concatenate([self.layout.empty(0), *(self._at(column) for column in plan.columns[leaving].tolist())])
        parts = torch.from_numpy(packed.view(np.uint8)).to(data_ranks.device).split(out_sizes.tolist())
        return packed.nbytes, data_ranks.all_to_all(parts, in_sizes.tolist())

    def _at(self, column: int) -> np.ndarray:
        """(1,) the record in that column of this rank's line."""
        if column >= self._share:
            return self._candidates[column - self._share]
        place = self._places[column]
        return self._memory[place : place + 1]

    def _settle(self, plan: MergePlan, received: list[Tensor]) -> None:
        """Bring this rank's memory to the records that it owns in the plan."""
        owned = np.flatnonzero(plan.owners == self.rank)  # one of each block, in the order of the new index
        holders, columns = plan.holders[owned], plan.columns[owned]
        remains = (holders == self.rank) & (columns < self._share)
        places = np.full(len(owned), -1)
        places[remains] = self._places[columns[remains]]
        free = np.setdiff1d(np.arange(self._share), places[remains], assume_unique=True)
        places[~remains] = free[: (~remains).sum()]
        mined_here = np.flatnonzero((holders == self.rank) & ~remains)
        for index in mined_here.tolist():
            self._memory[places[index]] = self._candidates[int(columns[index]) - self._share][0]
        for source in np.unique(holders[holders != self.rank]).tolist():
            self._memory[places[holders == source]] = received[source].cpu().numpy().view(self.layout.dtype)
        self._places, self._ledger = places, plan.owners
        self._candidates, self._calls = {}, 0

    def draw(self, count: int, temperature: float, rng: np.random.Generator, *, remove: bool) -> np.ndarray:
        """Indices of `count` records (all, when there are fewer), without replacement, hard ones with preference.

        Each draw has the `draw_probabilities` of the records left, by current loss. With `remove` those drawn are spent.
        """
        indices = self.indices
        hardest_first = indices[np.argsort(-self.losses[indices], kind="stable")]
        # Gumbel top-k: the largest logits plus Gumbel noise are a draw without replacement, and unlike a draw from the
        # probabilities it works where those underflow.
        noisy = draw_logits(len(indices), temperature) + rng.gumbel(size=len(indices))
        drawn = hardest_first[np.argsort(-noisy, kind="stable")[:count]]
        places = self._places[drawn]
        self._memory["drawn"][places] += 1
        self._memory["spent"][places] = remove
        return drawn

    def records(self, indices: np.ndarray) -> np.ndarray:
        """A copy of those records, (len(indices),)."""
        return self._memory[self._places[indices]]

    def refresh(self, indices: np.ndarray, losses: np.ndarray) -> None:
        """Store the losses of replayed records, (len(indices),), less their reference. One that is not finite is ignored."""
        finite = np.isfinite(losses)
        places = self._places[indices[finite]]
        self._memory["loss"][places] = losses[finite] - self._memory["reference"][places]

    def pending(self) -> PendingFile:
        """This rank's file; its records are copies. Not a collective."""
        numbers = np.array(sorted(self._candidates), np.int64)
        candidates = np.concatenate([self.layout.empty(0), *(self._candidates[number] for number in numbers.tolist())])
        shape = SavedShape(self.layout.image_size, self.layout.max_length, self.ranks, self.rows, self._calls)
        tensors = {
            "records": self._as_bytes(self._memory[self._places]),
            "candidates": self._as_bytes(candidates),
            "slots": numbers,
            "ledger": self._ledger.copy(),
        }
        copies = {name: torch.from_numpy(array) for name, array in tensors.items()}
        return PendingFile(FILE.format(self.rank), copies, {HEADER: json.dumps(asdict(shape))})

    def _as_bytes(self, records: np.ndarray) -> np.ndarray:
        """(n, bytes of a record) uint8."""
        return records.view(np.uint8).reshape(len(records), self.layout.dtype.itemsize)

    def load(self, folder: Path) -> None:
        """Read this rank's part of the saved buffers. Not a collective, but every rank must see all files.

        At the same number of ranks the state is bit-equal to the saved one. At another, records are dealt out again in the
        saved order, and candidates by their position in the data stream: the next merge keeps the same records. A smaller
        `capacity` keeps the hardest of the last merge. Raises CheckpointError when files are missing or records differ in
        layout.
        """
        saved = saved_shape(folder)
        if (saved.image_size, saved.max_length) != (self.layout.image_size, self.layout.max_length):
            side, length = self.layout.image_size, self.layout.max_length
            raise CheckpointError(
                f"{folder}: the hard buffer was saved with pictures of {saved.image_size}x{saved.image_size} and room for "
                f"{saved.max_length} tokens, this run has {side}x{side} and {length}. Use the model and the longest row it was "
                "saved with, or type checkpoint.resume=never to start again in another `output`."
            )
        self._clear()
        with safe_open(file_of(folder, 0), "numpy") as file:
            stored, ours = file.get_slice("records").get_shape()[1], self.layout.dtype.itemsize
            if stored != ours:
                raise CheckpointError(
                    f"{folder}: the records of the hard buffer have {stored} bytes there and {ours} here: another version of "
                    "megaunigame saved them. Resume with that version, or type checkpoint.resume=never to start again in "
                    "another `output`."
                )
            holders = file.get_tensor("ledger")[: self.capacity]
        same_ranks = saved.world_size == self.ranks
        self._ledger = holders if same_ranks else np.arange(len(holders)) % self.ranks
        owned = np.flatnonzero(self._ledger == self.rank)
        self._places = np.arange(len(owned))

        old, new = CandidateGrid(saved.world_size, saved.rows), CandidateGrid(self.ranks, self.rows)
        self._calls = new.calls(saved.calls * saved.world_size * saved.rows)
        for source in [self.rank] if old == new else range(saved.world_size):
            with safe_open(file_of(folder, source), "numpy") as file:
                for index in np.flatnonzero(holders[owned] == source).tolist():
                    self._memory[index] = self._read(file, "records", int(owned[index]) // saved.world_size)[0]
                ranks, numbers = new.place(old.position(source, file.get_tensor("slots")))
                for index in np.flatnonzero(ranks == self.rank).tolist():
                    self._candidates[int(numbers[index])] = self._read(file, "candidates", index)

    def _read(self, file: safe_open, name: str, number: int) -> np.ndarray:
        """(1,) one record of an open file."""
        return file.get_slice(name)[number : number + 1].view(self.layout.dtype)[0]
