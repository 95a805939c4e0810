"""One run at a time in a run folder."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from megaunigame.errors import ConfigError
from megaunigame.training import lock_holder, run_lock
from megaunigame.training.lock_holder import ENTRY_BYTES, Holder, decoded
from megaunigame.training.run_lock import FILE, check_held, claim, release
from tests.multi_process.launcher import REPOSITORY
from tests.worlds import OneRank, on_ranks

HOLD = (
    "import sys, time; from megaunigame.training.run_lock import claim; from tests.worlds import OneRank; "
    "claim(sys.argv[1], OneRank()); print('held', flush=True); time.sleep(60)"
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(run_lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(run_lock, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(run_lock, "CONFIRM_SECONDS", 0.2)
    yield
    release()


def entry(folder) -> Holder:
    holder = decoded((folder / FILE).read_bytes())
    assert holder is not None
    return holder


def left_by(folder, beats: int = 3, **changed) -> Holder:
    """What another process has written."""
    holder = dataclasses.replace(Holder.here(), pid=1, beats=beats, **changed)
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_bytes(holder.encoded())
    return holder


def without_locks(monkeypatch, code: int = errno.ENOLCK) -> None:
    def lockf(*_):
        raise OSError(code, "no locks")

    monkeypatch.setattr(fcntl, "lockf", lockf)


def refused(folder, world=None) -> str:
    with pytest.raises(ConfigError) as caught:
        claim(str(folder), world or OneRank())
    return str(caught.value)


@pytest.mark.fault("two runs started in one folder", does="the second is refused, host and pid of the first named", lost="")
def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path):
    run = tmp_path / "run"
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        for ranks in (1, 3):
            for problem in on_ranks(ranks, lambda world: refused(run, world)):
                assert f"in use by another run: host {entry(run).host}, pid {first.pid}, since 20" in problem
                assert "last sign of life" in problem
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    claim(str(run), OneRank())
    assert entry(run).pid == os.getpid()
    claim(str(run), OneRank())  # a process may run twice, one after the other
    another = subprocess.run(
        [sys.executable, "-c", HOLD, str(run)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert f"in use by another run: host {entry(run).host}, pid {os.getpid()}" in another.stderr


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL])
def test_without_locks_a_process_of_this_machine_counts_as_long_as_it_is_there(code, tmp_path, monkeypatch, caplog):
    without_locks(monkeypatch, code)
    started = lock_holder._started(1)
    assert started
    left_by(tmp_path, started=started)
    assert "pid 1" in refused(tmp_path) and "no record locks" in caplog.text
    left_by(tmp_path, started=started + "0")  # its number belongs to another process now
    claim(str(tmp_path), OneRank())
    assert entry(tmp_path).pid == os.getpid() and "is gone; it is taken over" in caplog.text


@pytest.mark.fault(
    "two runs started in one folder at the same moment, on a file system without locks",
    does="the one whose entry was overwritten is refused",
    lost="",
)
def test_of_two_launches_of_one_moment_one_is_refused(tmp_path, monkeypatch):
    without_locks(monkeypatch)
    beats = []
    monkeypatch.setattr(run_lock.Claim, "_beat", lambda self: beats.append(self))
    slept = time.sleep

    def other_claims(seconds):
        slept(seconds)
        left_by(tmp_path, host="other")

    with monkeypatch.context() as patched:
        patched.setattr(run_lock.time, "sleep", other_claims)
        assert "in use by another run: host other" in refused(tmp_path)
    assert run_lock._claims == [] and beats[0].holder.ended
    assert entry(tmp_path).host == "other", "what it has overwritten stays"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(beats[0].handle)
    left_by(tmp_path, host="other", ended=True)
    claim(str(tmp_path), OneRank())
    assert entry(tmp_path).pid == os.getpid()


def test_who_lost_the_folder_hears_of_it_with_the_next_sign_of_life(tmp_path):
    claim(str(tmp_path), OneRank())
    assert run_lock.lost_folder() is None
    left_by(tmp_path, host="other")
    until = time.monotonic() + 5
    while run_lock.lost_folder() is None:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert f"output={tmp_path} was taken over by another run" in str(run_lock.lost_folder())
    release()
    assert run_lock.lost_folder() is None and entry(tmp_path).host == "other"


def test_an_entry_of_another_version_is_somebody():
    ours = Holder.here()
    more = json.dumps({**dataclasses.asdict(ours), "rank": 0, "gpus": ["a"]}).encode()
    assert decoded(more.ljust(ENTRY_BYTES)) == ours
    fewer = decoded(json.dumps({"host": ours.host, "pid": ours.pid, "beats": 3}).encode())
    assert fewer is not None and (fewer.host, fewer.pid, fewer.is_near) == (ours.host, ours.pid, False)


@pytest.mark.parametrize("locks", [True, False])
def test_a_run_on_another_machine_is_dead_only_if_it_is_silent(tmp_path, monkeypatch, caplog, locks):
    """Also with a free lock: not every file system tells other machines of it."""
    if not locks:
        without_locks(monkeypatch)
    before = left_by(tmp_path, host="other")
    stop = threading.Event()

    def live():
        for beats in range(4, 400):
            if stop.wait(0.3):
                return
            (tmp_path / FILE).write_bytes(dataclasses.replace(before, beats=beats).encoded())

    thread = threading.Thread(target=live)
    thread.start()
    try:
        assert "host other" in refused(tmp_path)
        assert "waiting up to 1 s for a sign of life" in caplog.text
    finally:
        stop.set()
        thread.join()
    began = time.monotonic()
    claim(str(tmp_path), OneRank())
    assert 0.3 < time.monotonic() - began < 5 and entry(tmp_path).pid == os.getpid()
    release()
    left_by(tmp_path, host="other")
    os.utime(tmp_path / FILE, (time.time() - 60, time.time() - 60))
    caplog.clear()
    claim(str(tmp_path), OneRank())
    assert "waiting" not in caplog.text, "it has been silent for long enough"
    release()
    left_by(tmp_path, host="other", ended=True)
    claim(str(tmp_path), OneRank())
    assert "waiting" not in caplog.text, "it said that it has ended"


def test_a_lock_that_is_held_is_never_taken_over(tmp_path, monkeypatch):
    """Another process has the lock: a run, or a server that does not know yet that a client is gone. Somebody must look."""
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        left_by(tmp_path, host="other")
        assert "host other" in refused(tmp_path)
        os.utime(tmp_path / FILE, (time.time() - 60, time.time() - 60))
        said = refused(tmp_path)
        assert f"if nothing runs on other any more, delete {tmp_path / FILE} and give this command again" in said
        (tmp_path / FILE).unlink()
        claim(str(tmp_path), OneRank())
        assert entry_of_a_copy(tmp_path).pid == os.getpid()
    finally:
        first.kill()
        first.wait()


@pytest.mark.fault(
    "a run that was stopped comes back to a folder that another has taken", does="it ends before its next save", lost=""
)
def test_who_lost_the_folder_ends_before_the_next_save(tmp_path):
    claim(str(tmp_path), OneRank())
    check_held(OneRank())
    (tmp_path / FILE).rename(tmp_path / "old")
    left_by(tmp_path, host="other")
    for message in on_ranks(2, lost):
        assert "taken over by another run" in message
    release()
    assert entry(tmp_path).host == "other"
    claim(str(tmp_path / "second"), OneRank())
    left_by(tmp_path / "second", host="other")
    assert "taken over" in lost(OneRank())
    time.sleep(0.3)
    assert entry(tmp_path / "second").host == "other", "it must not write there any more"


@pytest.mark.parametrize(("code", "ours"), [(errno.ESTALE, False), (errno.ENOENT, False), (errno.EIO, True)])
def test_a_file_that_was_deleted_on_a_server_is_lost(tmp_path, monkeypatch, code, ours):
    claim(str(tmp_path), OneRank())
    held = run_lock._claims[0]

    def fail(*_given):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", fail)
        assert held.is_ours == ours


def test_a_sign_of_life_is_flushed(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    claim(str(tmp_path), OneRank())
    until = time.monotonic() + 5
    while len(flushed) < 3:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert set(flushed) == {run_lock._claims[0].handle}


def lost(world) -> str:
    with pytest.raises(ConfigError) as caught:
        check_held(world)
    return str(caught.value)


def test_signs_of_life_are_written_until_the_end(tmp_path):
    claim(str(tmp_path), OneRank())
    until = time.monotonic() + 5
    while entry_of_a_copy(tmp_path).beats < 3:
        assert time.monotonic() < until
        time.sleep(0.05)
    release()
    holder = entry(tmp_path)
    assert holder.ended and holder.beats >= 3
    time.sleep(0.3)
    assert entry(tmp_path) == holder and (tmp_path / FILE).stat().st_size == ENTRY_BYTES


def entry_of_a_copy(folder) -> Holder:
    """Without opening the file in the process that has its lock, which would give that away."""
    copy = subprocess.run(["cat", str(folder / FILE)], capture_output=True, check=True).stdout
    holder = decoded(copy)
    assert holder is not None
    return holder


@pytest.mark.fault("running.json is garbage", does="the folder is taken if its lock is free", lost="")
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"host": 1}', b'{"host": "a", "pid": "7", "since": ""}', b"x" * 5000],
)
def test_garbage_is_nobody(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    claim(str(tmp_path), OneRank())
    assert entry(tmp_path).pid == os.getpid()


@pytest.mark.fault("output is a file, or may not be written", does="refused in one line", lost="")
def test_what_cannot_be_a_folder(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "is, or lies below, a file. Type output=FOLDER" in refused(path)
    assert "cannot be a run folder" in refused("/proc/none/run")
    for code, words in ((errno.EROFS, "may not be written"), (errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "quota")):

        def fail(*_given, code=code, **_named):
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patched:
            patched.setattr(os, "open", fail)
            assert words in refused(tmp_path / "new") and "Type output=" in refused(tmp_path / "new")
