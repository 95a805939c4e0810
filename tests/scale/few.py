"""The replays that tests look at, in a process without a group of its own.

python -m tests.scale.few FOLDER     writes FOLDER/replays.pickle
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from tests.scale.measure import GAME, OTHER, RANKS
from tests.scale.replayed import replay, write_home

FEW, MANY = RANKS[1], 64
"""The first has a row on the page; the second is another number of ranks, to see what grows."""
RESULT = "replays.pickle"


def main() -> None:
    home = write_home(Path(sys.argv[1]))
    few = replay(home, GAME, 0, FEW)
    other = replay(home, GAME, OTHER, FEW, few.said)
    made = {(0, FEW): few, (OTHER, FEW): other, (0, MANY): replay(home, GAME, 0, MANY)}
    (home / RESULT).write_bytes(pickle.dumps(made))


if __name__ == "__main__":
    main()
