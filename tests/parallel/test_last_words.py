"""What a rank leaves, and what it looks for: its launcher."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from megaunigame.parallel.last_words import leave, make_recorder_folder, use_flight_recorder, within, write_stacks
from megaunigame.parallel.pulse import PULSE
from megaunigame.parallel.watch import Watch, says_lost
from tests.worlds import OneRank


def test_the_stacks_of_all_threads_are_written(tmp_path):
    done = threading.Event()

    def waits_for_data() -> None:
        done.wait(20)

    thread = threading.Thread(target=waits_for_data)
    thread.start()
    try:
        where = leave(tmp_path, 3)
    finally:
        done.set()
        thread.join()
    text = (tmp_path / "rank_00003.stacks").read_text()
    assert "waits_for_data" in text and "test_the_stacks_of_all_threads" in text
    assert "test_the_stacks_of_all_threads" in where


def test_a_disk_that_does_not_answer_is_not_waited_for():
    begun = time.monotonic()
    within(0.2, lambda: time.sleep(5))
    assert time.monotonic() - begun < 3


def test_stacks_need_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_stacks(tmp_path / "none", 0)


def test_the_flight_recorder_writes_into_the_run_folder_unless_the_user_said_where(tmp_path, monkeypatch):
    for name in ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_DUMP_ON_TIMEOUT", "TORCH_NCCL_ASYNC_ERROR_HANDLING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_FR_DUMP_TEMP_FILE", "/elsewhere/rank_")
    use_flight_recorder(tmp_path)
    assert os.environ["TORCH_FR_DUMP_TEMP_FILE"] == "/elsewhere/rank_"
    assert int(os.environ["TORCH_FR_BUFFER_SIZE"]) > 0 and os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"
    monkeypatch.delenv("TORCH_FR_DUMP_TEMP_FILE")
    use_flight_recorder(tmp_path)
    assert os.environ["TORCH_FR_DUMP_TEMP_FILE"] == f"{tmp_path}/flight_recorder/rank_"


def test_the_flight_recorder_touches_no_folder_before_it_is_the_run_s(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setenv("TORCH_FR_DUMP_TEMP_FILE", "/elsewhere/rank_")
    taken = tmp_path / "file"
    taken.write_text("not a folder: whoever claims it says so")
    use_flight_recorder(taken)
    use_flight_recorder(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    make_recorder_folder(tmp_path / "run")
    assert (tmp_path / "run" / "flight_recorder").is_dir()


@pytest.mark.fault("kill -9 of the launcher", does="the ranks save after their step, and stop", lost="nothing")
def test_a_rank_whose_launcher_has_ended_asks_itself_to_stop_once(tmp_path, monkeypatch):
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr("megaunigame.parallel.watch.os.kill", lambda pid, number: sent.append((pid, number)))
    monkeypatch.setattr(PULSE, "stopping", False)
    watch = Watch(OneRank(), tmp_path, timeout_minutes=1, lost_seconds=30)
    assert watch.launcher is None, "the shell of a test is not a launcher"
    watch._look_for_the_launcher()
    watch.launcher = os.getppid()
    watch._look_for_the_launcher()
    assert not sent
    watch.launcher = os.getppid() + 1
    watch._look_for_the_launcher()
    watch._look_for_the_launcher()
    assert sent == [(os.getpid(), signal.SIGTERM)]
    monkeypatch.setattr(PULSE, "stopping", True)
    watch.launcher = os.getppid() + 1
    watch._look_for_the_launcher()
    assert len(sent) == 1, "it is about to stop: a second signal would end it at once"


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[../gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.1]:123"), True),
        (RuntimeError("Rank 1 successfully reached monitoredBarrier, but received errors while waiting"), True),
        (RuntimeError("CUDA out of memory"), False),
        (ValueError("gloo"), False),
    ],
)
def test_errors_of_a_lost_rank(error, lost):
    assert says_lost(error) is lost
