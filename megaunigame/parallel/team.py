"""The ranks of one machine: started, signaled, waited for."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time

from megaunigame.errors import ConfigError, Interrupted
from megaunigame.parallel.interruption import heard_signals
from megaunigame.parallel.processes import TEAM, free_port

POLL_SECONDS = 0.1
SIGTERM_SECONDS, KILL_SECONDS = 4.0, 20.0
"""After the first failure. By the SIGTERM, other ranks have seen that it is gone. It comes before `OTHERS_WAIT_SECONDS`
(megaunigame/launching.py): ranks with the same error do not repeat it."""


class Team:
    """The ranks of this machine."""

    def __init__(self, *, saves: bool = True) -> None:
        """`saves`: whether the ranks listen to signals, and save."""
        self.saves = saves
        self.ranks: list[subprocess.Popen[bytes]] = []
        self.signals: list[int] = []
        """Passed on so far. Written by the signal handler only, at any moment."""

    def start(self, command: list[str], places: list[dict[str, str]]) -> None:
        """One process for each place, an environment. A signal that comes meanwhile keeps the rest from starting."""
        for place in places:
            if not self.signals:
                self.ranks.append(subprocess.Popen(command, env={**os.environ, **place}))
        if self.signals:
            self.send(self.signals[-1])  # the one that came while a process was made has not reached it

    def pass_on(self, number: int, _frame: object = None) -> None:
        """Ranks may get it twice, because they are in the process group of a terminal: they take that for one."""
        self.signals.append(number)
        self.send(number)

    def send(self, number: int) -> None:
        for rank in self.ranks:
            with contextlib.suppress(ProcessLookupError):
                rank.send_signal(number)

    def wait(self) -> int:
        """Until all have ended. The exit code of the rank that failed first; 0: none did."""
        code, since = 0, 0.0
        steps = iter([(SIGTERM_SECONDS, signal.SIGTERM), (KILL_SECONDS, signal.SIGKILL)])
        after, number = next(steps)
        while any([rank.poll() is None for rank in self.ranks]):
            if code == 0 and (code := self.failure()):
                since = time.monotonic()
            if code and time.monotonic() - since > after:
                self.send(number)
                after, number = next(steps, (float("inf"), number))
            time.sleep(POLL_SECONDS)
        nothing_began = Interrupted.exit_code if self.saves else 128 + (self.signals or [0])[0]
        return code or self.failure() or (nothing_began if self.signals and not self.ranks else 0)

    def failure(self) -> int:
        """Of the ranks that have ended by now: interrupted goes before a peer that lost its connection by that.

        A rank that listens is not killed by what is passed on: one that is had not begun.
        """
        killed_by = {-number: Interrupted.exit_code for number in self.signals if self.saves}
        codes = [killed_by.get(code, code if code > 0 else 128 - code) for code in (rank.poll() for rank in self.ranks) if code]
        return Interrupted.exit_code if Interrupted.exit_code in codes else next(iter(codes), 0)


def run_team(
    command: list[str],
    ranks: int,
    *,
    nodes: int = 1,
    node: int = 0,
    address: str = "127.0.0.1",
    port: int = 0,
    saves: bool = True,
) -> int:
    """Run `command` once for each rank of this machine, and return the exit code of the first that failed; 0: none did.

    `nodes`: machines with as many ranks; `node`: the number of this one. The ranks meet at `port` of machine 0, `address`; 0: a
    free one, if there is one machine. Signals that end a run are passed on; `saves`: the ranks then save, which the exit code
    says. Raises ConfigError for numbers that do not fit.
    """
    if not (ranks > 0 and 0 <= node < nodes):
        raise ConfigError(
            f"--ranks {ranks} --nodes {nodes} --node {node}: each machine has 1 rank or more, and machines are numbered from 0 "
            "to --nodes minus 1."
        )
    shared = {TEAM: str(os.getpid()), "MASTER_ADDR": address, "MASTER_PORT": str(port or free_port())}
    shared |= {"LOCAL_WORLD_SIZE": str(ranks), "WORLD_SIZE": str(nodes * ranks)}
    team = Team(saves=saves)
    for number in heard_signals():
        signal.signal(number, team.pass_on)
    team.start(command, [{**shared, "RANK": str(node * ranks + local), "LOCAL_RANK": str(local)} for local in range(ranks)])
    return team.wait()
