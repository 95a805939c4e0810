"""Start the ranks of one machine, pass signals on to them, and end with their exit code.

    python launch/node.py --ranks 8 launch/train.py launch/recipes/RECIPE.yaml                     one machine
    python launch/node.py --ranks 8 --nodes 4 --node 2 --address HOST launch/train.py RECIPE.yaml  the third of four

SIGTERM, SIGINT, SIGHUP and SIGUSR1 go to every rank, and the run then saves for as long as it needs: the `deepspeed` command
kills it after 30 seconds, and torchrun turns every exit code but 0 into 1. When a rank fails, the others are ended. Exit codes
are those of megaunigame/launching.py, and 128 + n when signal n killed a rank.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

sys.path.pop(0)  # launch/, where profile.py would hide Python's module of that name
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megaunigame.errors import ConfigError, Interrupted
from megaunigame.launching import options_of, run_to_exit
from megaunigame.parallel.interruption import heard_signals

POLL_SECONDS = 0.1
SIGTERM_SECONDS, KILL_SECONDS = 4.0, 20.0
"""After the first failure. By the SIGTERM, other ranks have seen that it is gone. It comes before `OTHERS_WAIT_SECONDS`
(megaunigame/launching.py): ranks with the same error do not repeat it."""


class Team:
    """The ranks of this machine."""

    def __init__(self) -> None:
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
        return code or self.failure() or (Interrupted.exit_code if self.signals and not self.ranks else 0)

    def failure(self) -> int:
        """Of the ranks that have ended by now: interrupted goes before a peer that lost its connection by that.

        A rank that listens is not killed by what is passed on: one that is had not begun.
        """
        killed_by = {-number: Interrupted.exit_code for number in self.signals}
        codes = [killed_by.get(code, code if code > 0 else 128 - code) for code in (rank.poll() for rank in self.ranks) if code]
        return Interrupted.exit_code if Interrupted.exit_code in codes else next(iter(codes), 0)


def main(arguments: list[str]) -> NoReturn:
    parser = options_of(__doc__)
    parser.add_argument("--ranks", type=int, required=True, help="ranks of this machine: one for each GPU")
    parser.add_argument("--nodes", type=int, default=1, help="machines")
    parser.add_argument("--node", type=int, default=0, help="number of this machine, from 0")
    parser.add_argument("--address", default="127.0.0.1", help="host name of machine 0")
    parser.add_argument("--port", type=int, default=29500, help="free port of machine 0")
    parser.add_argument("script")
    parser.add_argument("arguments", nargs="...")
    options = parser.parse_args(arguments)
    if not (options.ranks > 0 and 0 <= options.node < options.nodes):
        raise ConfigError(
            f"--ranks {options.ranks} --nodes {options.nodes} --node {options.node}: each machine has 1 rank or more, and "
            "machines are numbered from 0 to --nodes minus 1."
        )
    shared = {"MASTER_ADDR": options.address, "MASTER_PORT": str(options.port), "LOCAL_WORLD_SIZE": str(options.ranks)}
    shared["WORLD_SIZE"] = str(options.nodes * options.ranks)
    team = Team()
    for number in heard_signals():
        signal.signal(number, team.pass_on)
    places = [
        {**shared, "RANK": str(options.node * options.ranks + local), "LOCAL_RANK": str(local)}
        for local in range(options.ranks)
    ]
    team.start([sys.executable, "-u", options.script, *options.arguments], places)
    sys.exit(team.wait())


if __name__ == "__main__":
    run_to_exit(main, sys.argv[1:])
