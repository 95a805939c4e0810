"""The place of this process among the ranks, from the environment that a launcher set."""

from __future__ import annotations

import os
from dataclasses import dataclass

from megaunigame.errors import ConfigError

NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher sets next to WORLD_SIZE."""
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
"""The environment of a process without a launcher."""


@dataclass(frozen=True)
class Place:
    """Rank of this process, number of ranks, rank within the machine."""

    rank: int
    size: int
    local_rank: int
    alone: bool
    """No other process is to be met."""


def place_of_process() -> Place:
    """Reads RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as deepspeed, torchrun and srun wrappers set them.

    Without a launcher, or with WORLD_SIZE=1, the process is alone, and what is missing is filled in, also in the environment:
    deepspeed reads it there. Raises ConfigError for a world of several ranks that is not described.
    """
    size = _number("WORLD_SIZE", "1")
    if size > 1:
        missing = [name for name in NEEDED if name not in os.environ]
        if missing:
            raise ConfigError(
                f"WORLD_SIZE={size} without {', '.join(missing)}: the environment names other processes, not the place of this "
                "one. Start the ranks with deepspeed or torchrun, which set all of them, or unset WORLD_SIZE to run alone."
            )
    alone = size == 1 and _number("RANK", "0") == 0
    if alone:
        for name, value in ALONE.items():
            os.environ.setdefault(name, value)
    rank, local_rank = _number("RANK", "0"), _number("LOCAL_RANK", "0")
    if not 0 <= rank < size:
        raise ConfigError(
            f"RANK={rank} is not one of the ranks 0 to {size - 1} of WORLD_SIZE={size}. Start them with deepspeed or torchrun."
        )
    return Place(rank, size, local_rank, alone)


def cpu_threads() -> int:
    """Threads of torch on the CPU: the first number of OMP_NUM_THREADS, which may be a list (one per nested level); else 1."""
    given = os.environ.get("OMP_NUM_THREADS", "1")
    first = given.split(",")[0].strip()
    if not first.isdigit() or int(first) < 1:
        raise ConfigError(f"OMP_NUM_THREADS={given!r} is not a number of threads. Type OMP_NUM_THREADS=1 before the command.")
    return int(first)


def _number(name: str, default: str) -> int:
    given = os.environ.get(name, default)
    try:
        return int(given)
    except ValueError as error:
        raise ConfigError(f"The environment has {name}={given!r}, which is not a whole number.") from error
