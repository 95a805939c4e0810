"""Several ranks on this machine, started by the command itself: for who has no launcher."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

from megaunigame.errors import ConfigError
from megaunigame.parallel.team import run_team

DEVICES = Path("/dev")
GPU_FILE = re.compile(r"nvidia\d+")
SET_BY_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def add_ranks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ranks", type=int, help="processes to start on this machine; default: one for each NVIDIA GPU; on CPUs one"
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it


def start_ranks(asked: int | None, *, saves: bool) -> None:
    """Start what was typed once for each rank, wait for the ranks, and end this process with their exit code.

    Returns when this process is to do the work itself: a launcher has started it, or one rank is enough. `asked`: of `--ranks`;
    `saves`: as `run_team` has it. Raises ConfigError when a launcher has started other numbers of ranks than `asked`.
    """
    if any(name in os.environ for name in SET_BY_LAUNCHERS):
        size = os.environ.get("WORLD_SIZE", "1")
        if asked is not None and size != str(asked):
            raise ConfigError(
                f"--ranks {asked}, but a launcher has started this process as one of WORLD_SIZE={size}. Leave out --ranks, or "
                f"unset {', '.join(SET_BY_LAUNCHERS)} to start the ranks here."
            )
        return
    ranks = default_ranks() if asked is None else asked
    if ranks == 1:
        return
    sys.exit(run_team([sys.executable, "-u", *sys.orig_argv[1:]], ranks, saves=saves))


def default_ranks() -> int:
    """One for each visible NVIDIA GPU; 1 without any, and with DS_ACCELERATOR=cpu."""
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        return 1
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return max(1, len([name for name in visible.split(",") if name.strip()]))
    return max(1, sum(1 for file in DEVICES.glob("nvidia*") if GPU_FILE.fullmatch(file.name)))
