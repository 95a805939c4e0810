"""Replays the tiny runs for many numbers of ranks, counts the large shape, and writes tests/scale/results.json.

python -m tests.scale.measure            (some minutes; then: python -m tests.scale.write_page)
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from megaunigame.parallel.beats import Beat
from megaunigame.parallel.line import Line
from tests.scale.large_shape import TRAINED, large_shape
from tests.scale.replayed import CASES, replay, write_home

RESULTS = Path(__file__).parent / "results.json"
RANKS = (2, 16, 128, 1024)
GAME = "UniGame, alternating"
"""The case whose run is resumed, and replayed as another rank, too."""
OTHER = 1
"""The last ranks of many have nothing of a tiny weight, and padding is not made of numbers."""
LARGE = [32, 128, 1024]


def measured(home: Path) -> list[dict[str, Any]]:
    """A row for each replay."""
    rows = []
    for case in CASES:
        for ranks in RANKS:
            first = replay(home, case, 0, ranks, resumes=case == GAME)
            rows.append({"case": case, **first.row()})
            if case == GAME:
                last = replay(home, case, OTHER, ranks, first.said)
                rows.append({"case": case, **last.row(), "same order": last.kinds() == first.kinds()})
            print(case, ranks, flush=True)
    return rows


class CountingStore:
    """Keys that are asked for, and the bytes of their answers."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.requests = self.keys = self.bytes = 0

    def set(self, key: str, value: str) -> None:
        self.requests += 1
        self.kept[key] = value.encode()

    def multi_get(self, keys: list[str]) -> list[bytes]:
        answers = [self.kept[key] for key in keys]
        self.requests, self.keys, self.bytes = self.requests + 1, self.keys + len(keys), self.bytes + sum(map(len, answers))
        return answers


def beats(ranks: int) -> dict[str, int]:
    """What rank 0 asks of the store in one beat."""
    store = CountingStore()
    lines = [Line(store, rank, ranks) for rank in range(ranks)]
    said = [
        Beat(rank, "node-0123", 4_000_000, 1000, 100, "learner forward", True, 5000, 0.123456789, 0.0) for rank in range(ranks)
    ]
    for line, beat in zip(lines, said, strict=True):
        line.open(beat)
    store.requests = store.keys = store.bytes = 0
    lines[0].exchange(said[0])
    return {"requests": store.requests, "keys": store.keys, "bytes": store.bytes}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(write_home(Path(folder)))
    large = [row for trained in TRAINED for row in large_shape(LARGE, trained)]
    results = {"tiny": rows, "large": large, "beats": {str(ranks): beats(ranks) for ranks in RANKS}}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
