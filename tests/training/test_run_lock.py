"""One run at a time in a run folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys

import pytest

from megaunigame.errors import ConfigError
from megaunigame.training.run_lock import FILE, claim
from tests.multi_process.launcher import REPOSITORY
from tests.worlds import OneRank, on_ranks

HOLD = (
    "import sys, time; from megaunigame.training.run_lock import claim; from tests.worlds import OneRank; "
    "claim(sys.argv[1], OneRank()); print('held', flush=True); time.sleep(60)"
)


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path):
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        for ranks in (1, 3):
            for problem in on_ranks(ranks, lambda world: refusal(tmp_path, world)):
                assert 'in use by another run: {"host"' in problem and f'"pid": {first.pid}' in problem
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    claim(str(tmp_path / "run"), OneRank())
    assert json.loads((tmp_path / "run" / FILE).read_text())["pid"] == os.getpid()
    claim(str(tmp_path / "run"), OneRank())  # a process may run twice, one after the other


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL])
def test_a_file_system_without_locks_is_no_other_run(code, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(fcntl, "lockf", lambda *_: raise_(OSError(code, "no locks")))
    claim(str(tmp_path / "run"), OneRank())
    assert json.loads((tmp_path / "run" / FILE).read_text())["pid"] == os.getpid()
    assert "has no record locks" in caplog.text and "second run" in caplog.text
    monkeypatch.setattr(fcntl, "lockf", lambda *_: raise_(OSError(errno.EACCES, "held")))
    with pytest.raises(ConfigError, match="in use by another run"):
        claim(str(tmp_path / "run"), OneRank())


def raise_(error: Exception) -> None:
    raise error


def refusal(folder, world) -> str:
    with pytest.raises(ConfigError) as caught:
        claim(str(folder / "run"), world)
    return str(caught.value)


def test_what_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file cannot be a run folder"):
        claim(str(tmp_path / "file"), OneRank())
    with pytest.raises(ConfigError, match="cannot be a run folder"):
        claim("/proc/none/run", OneRank())
