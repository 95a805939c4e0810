"""Ranks that hang, stop, die, disagree or do not come, each case with three processes; all cases at the same time.

    python -m tests.parallel.watched_ranks FOLDER CASE ...

Writes FOLDER/CASE/rank_R.out, and to rank_R.code the exit code of each rank and the seconds it took. A rank that has not
ended after `MOST` seconds has no such file.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch

from megaunigame.launching import run_to_exit
from megaunigame.parallel.environment import Place
from megaunigame.parallel.meeting import meet
from megaunigame.parallel.pulse import AGREE, EVALUATION, PULSE
from megaunigame.parallel.ranks import start_world
from megaunigame.parallel.same_start import check_same_start
from megaunigame.parallel.watch import Watch
from megaunigame.step.micro import Step
from megaunigame.training.ending import report
from megaunigame.training.lockstep import LockstepGuard
from tests.multi_process.launcher import free_port

RANKS, MOST = 3, 60.0
STEP = 812
TIMEOUT_MINUTES, LOST_SECONDS = 0.15, 4.0
"""A stall is seen after 80 % of 9 s."""


def stopped() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def never_ends() -> None:
    time.sleep(1000)


def raises() -> None:
    raise ValueError("a bug of one rank")


FAULTS: dict[str, tuple[int, Callable[[], None]]] = {
    "stuck": (1, never_ends),
    "stopped": (2, stopped),
    "first stopped": (0, stopped),
    "killed": (1, killed),
    "raises": (2, raises),
    "first raises": (0, raises),
    "slow": (1, lambda: time.sleep(5)),
    "fine": (-1, lambda: None),
}
"""Case -> the rank with a fault in its data, and the fault."""


def train(case: str, rank: int, folder: Path) -> None:
    """Two steps; in the second, one rank has its fault while the others wait for it."""
    faulty, fault = FAULTS[case]
    world = start_world(TIMEOUT_MINUTES)
    with Watch(world, folder, timeout_minutes=TIMEOUT_MINUTES, lost_seconds=LOST_SECONDS):
        for step in (STEP - 1, STEP):
            with PULSE.step(step):
                with PULSE.phase("data", in_step=True):
                    if step == STEP and rank == faulty:
                        fault()
                with PULSE.phase(AGREE, in_step=True):
                    world.all_reduce_sum(torch.ones(1))
        if case == "fine" and rank == 1:
            time.sleep(1.5 * LOST_SECONDS)  # the others have left, and wait in the barrier
    world.close()


def report_hangs(rank: int, folder: Path) -> None:
    """The disk of rank 0 hangs after the last step, in its report."""
    world = start_world(TIMEOUT_MINUTES)
    record = SimpleNamespace(folder=folder, finish=lambda complete: never_ends()) if rank == 0 else None
    with Watch(world, folder, timeout_minutes=TIMEOUT_MINUTES, lost_seconds=LOST_SECONDS):
        with PULSE.step(STEP):
            world.all_reduce_sum(torch.ones(1))
        report(world, record, complete=True)  # type: ignore[arg-type]


def evaluation_hangs(rank: int, folder: Path) -> None:
    """Rank 1 reads forever; the others come to the next agreement about a stop."""
    world = start_world(TIMEOUT_MINUTES)
    with Watch(world, folder, timeout_minutes=TIMEOUT_MINUTES, lost_seconds=LOST_SECONDS):
        with PULSE.phase(EVALUATION):
            world.any(False)
            if rank == 1:
                never_ends()
            world.any(False)


def disagree(rank: int) -> None:
    world = start_world(0.5)
    begun = time.perf_counter()
    for number in range(200):
        LockstepGuard(world).check(Step(number, 0.1, [], 0.1))
    print(f"seconds {(time.perf_counter() - begun) / 200}")
    LockstepGuard(world).check(Step(200 if rank < 2 else 201, 0.1, [], 0.1))


def differ(rank: int) -> None:
    world = start_world(0.5)
    check_same_start(world, {"torch": "2.14", "optimizer.lr": "1e-5" if rank else "2e-5"})


def wait_for(happened: Callable[[], bool]) -> None:
    while not happened():  # `MOST` seconds end it
        time.sleep(0.1)


def misses(rank: int) -> None:
    if rank != 1:
        meet(Place(rank, RANKS, rank, alone=False), seconds=16)


def port_taken(rank: int, folder: Path) -> None:
    """Ranks 0 and 1 are a run of two; rank 2 comes as both ranks of another one while they last."""
    if rank < 2:
        first = meet(Place(rank, 2, rank, alone=False), seconds=30)
        (folder / f"met-{rank}").touch()
        wait_for(lambda: (folder / "refused").exists())
        print(f"met at {first.port}")
        return
    wait_for(lambda: all((folder / f"met-{other}").exists() for other in (0, 1)))
    for place in (0, 1):
        try:
            meet(Place(place, 2, place, alone=False), seconds=20)
        except Exception as error:
            print(f"as rank {place}: {type(error).__name__}: {error}", flush=True)
    (folder / "refused").touch()


def run(case: str, rank: int, folder: Path) -> None:
    if case in FAULTS:
        train(case, rank, folder)
    elif case == "evaluation hangs":
        evaluation_hangs(rank, folder)
    elif case == "report hangs":
        report_hangs(rank, folder)
    elif case == "port taken":
        port_taken(rank, folder)
    else:
        {"disagree": disagree, "differ": differ, "misses": misses}[case](rank)


def start(case: str, rank: int, folder: Path, port: int) -> int:
    """Pid of the forked rank. In another session, as a launcher's."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    out = os.open(folder / f"rank_{rank}.out", os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    run_to_exit(lambda _: run(case, rank, folder), [])


def main(home: Path, cases: list[str]) -> None:
    waiting: dict[int, tuple[Path, int]] = {}
    for case in cases:
        folder = home / case
        folder.mkdir(parents=True)
        port = free_port()
        for rank in range(RANKS):
            waiting[start(case, rank, folder, port)] = (folder, rank)
    until, begun = time.monotonic() + MOST, time.monotonic()
    while waiting and time.monotonic() < until:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            time.sleep(0.05)
            continue
        folder, rank = waiting.pop(pid)
        said = {"code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - begun}
        (folder / f"rank_{rank}.code").write_text(json.dumps(said))
        # A stopped rank waits for its launcher's SIGKILL, which comes when the others have ended.
        if sum(where == folder for where, _ in waiting.values()) == 1 and "stopped" in folder.name:
            last = next(pid for pid, (where, _) in waiting.items() if where == folder)
            os.kill(last, signal.SIGKILL)
    for pid in waiting:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
