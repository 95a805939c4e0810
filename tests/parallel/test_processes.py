"""Processes of this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from megaunigame.parallel.home import Home, home_of_process
from megaunigame.parallel.processes import GONE, LIVES, STOPPED, free_port, launcher_pid, listener_of, state_of
from tests.multi_process.launcher import REPOSITORY


def eventually(pid: int, state: str) -> bool:
    until = time.monotonic() + 10
    while state_of(pid) != state and time.monotonic() < until:
        time.sleep(0.02)
    return state_of(pid) == state


def test_lives_stopped_gone_and_not_waited_for():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    try:
        assert eventually(process.pid, LIVES)
        process.send_signal(signal.SIGSTOP)
        assert eventually(process.pid, STOPPED)
    finally:
        process.kill()
    assert eventually(process.pid, GONE), "a zombie is gone"
    process.wait()
    assert state_of(process.pid) == GONE


def test_the_listener_of_a_port_is_named():
    port = free_port()
    assert listener_of(port) == ""
    with socket.create_server(("127.0.0.1", port)):
        assert listener_of(port).startswith(f"pid {os.getpid()} (")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert listener_of(client.getsockname()[1]) == "", "a connection is not a listener"


ORPHAN = """
import os, sys
sys.path.insert(0, {repository!r})
from megaunigame.parallel.processes import launcher_pid
sys.stdout.write(f"{{os.getpid()}} {{launcher_pid()}}\\n")  # a line at once, also with PYTHONUNBUFFERED: ranks share the pipe
"""
LAUNCHER = 'echo $$; "$PYTHON" -c "$CODE"; true'


@pytest.mark.parametrize(("name", "rank", "is_launcher"), [
    ("deepspeed.launcher.launch", "0", True),
    ("/usr/bin/torchrun", "3", True),
    ("launch/node.py", "1", True),
    ("/repository/launch/node.py", "1", True),
    ("bash", "0", False),
    ("/usr/bin/torchrun_all.sh", "0", False),
    ("deepspeed.launcher.launch", None, False),
])  # fmt: skip
def test_only_a_launcher_is_a_launcher(name, rank, is_launcher):
    """By its name."""
    environment = {key: value for key, value in os.environ.items() if key != "RANK"} | ({"RANK": rank} if rank else {})
    environment |= {"PYTHON": sys.executable, "CODE": ORPHAN.format(repository=str(REPOSITORY))}
    done = subprocess.run(
        [name, "-c", LAUNCHER], executable="/bin/sh", capture_output=True, text=True, env=environment, check=True
    )
    parent, (_, found) = done.stdout.split()[0], done.stdout.split()[1:]
    assert found == (parent if is_launcher else "None")
    assert launcher_pid() is None


def test_ranks_know_who_has_started_them(tmp_path):
    """`megaunigame train --ranks 2`, whose command line is any."""
    (tmp_path / "rank.py").write_text(ORPHAN.format(repository=str(REPOSITORY)))
    team = (
        "import os, sys; from megaunigame.parallel.team import run_team; print(os.getpid(), flush=True); "
        "run_team([sys.executable, sys.argv[1]], 2)"
    )
    command = [sys.executable, "-c", team, tmp_path / "rank.py"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    parent, *ranks = done.stdout.splitlines()
    assert len(ranks) == 2 and all(rank.split()[1] == parent for rank in ranks)


def test_pids_mean_something_on_one_machine_only():
    here = home_of_process(0)
    assert here.pid == os.getpid() and here.sees(Home(1, "other name", here.machine, 1))
    assert not here.sees(Home(1, here.host, "another", 1)) and not Home(0, "a", "", 1).sees(Home(1, "a", "", 2))
