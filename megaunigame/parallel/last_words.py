"""What a rank leaves when its run cannot go on: the stacks of its threads, and the last collectives of NCCL."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch._C._distributed_c10d as _c10d

WRITING_SECONDS = 5.0
"""The disk may be what hangs."""
INNERMOST = 6
"""Frames of the main thread on the console."""
RECORDER = "flight_recorder"


def use_flight_recorder(folder: str | Path) -> None:
    """Have NCCL's process group remember its last collectives, and write them on a time-out. Before that group is made, which
    reads the environment; what is there already, stays. Writes nothing: the folder may be another run's."""
    target = Path(folder).absolute() / RECORDER
    for name, value in (
        ("TORCH_FR_BUFFER_SIZE", "2000"),  # collectives
        ("TORCH_NCCL_DUMP_ON_TIMEOUT", "1"),
        ("TORCH_FR_DUMP_TEMP_FILE", f"{target}/rank_"),
        ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "3"),  # a collective that fails ends the process
    ):
        os.environ.setdefault(name, value)


def make_recorder_folder(folder: str | Path) -> None:
    """NCCL writes into a folder that is there. Once the run folder is this run's."""
    if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu":
        (Path(folder) / RECORDER).mkdir(parents=True, exist_ok=True)


def leave(folder: Path, rank: int) -> str:
    """Write `rank_00000.stacks` and, with NCCL, `flight_recorder/rank_0`; returns where the main thread is.

    Gives up on a disk that does not answer.
    """
    within(WRITING_SECONDS, lambda: write_stacks(folder, rank))
    within(WRITING_SECONDS, lambda: _write_collectives(folder, rank))
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return "".join(traceback.format_stack(frame)[-INNERMOST:]).rstrip() if frame else ""


def leave_error(folder: Path, rank: int, error: BaseException) -> None:
    """As `leave`, of a main thread whose collective has ended with `error`: its stack is that of the error."""
    within(WRITING_SECONDS, lambda: write_stacks(folder, rank, "".join(traceback.format_exception(error))))
    within(WRITING_SECONDS, lambda: _write_collectives(folder, rank))


def write_stacks(folder: Path, rank: int, first: str = "") -> None:
    with open(folder / f"rank_{rank:05d}.stacks", "w", encoding="utf-8") as file:
        file.write(first)
        file.flush()  # faulthandler writes to the descriptor
        faulthandler.dump_traceback(file, all_threads=True)


def _write_collectives(folder: Path, rank: int) -> None:
    if not (torch.cuda.is_available() and torch.distributed.is_nccl_available() and torch.distributed.is_initialized()):
        return
    target = folder / RECORDER
    target.mkdir(parents=True, exist_ok=True)
    (target / f"rank_{rank}").write_bytes(_c10d._dump_nccl_trace())  # type: ignore[attr-defined]


def within(seconds: float, act: Callable[[], object]) -> None:
    """Run `act`; go on without it after `seconds`. Its error is printed: these are the last words of a process."""
    thread = threading.Thread(target=act, name="last words", daemon=True)
    thread.start()
    thread.join(seconds)
