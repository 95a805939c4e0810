"""The ranks meet: attendance, and what stays away. Ports and missing ranks over real sockets: test_watch.py."""

from __future__ import annotations

import threading
import time

import pytest
import torch.distributed as dist

from megaunigame.errors import MeetingError
from megaunigame.parallel.environment import Place
from megaunigame.parallel.meeting import CALL, answer, attendance, await_all, here, meet, port_in_use
from megaunigame.parallel.processes import free_port


def test_attendance():
    assert attendance(8, [5]) == "7 of 8 ranks have come; rank 5 has not"
    assert attendance(8, [0, 1, 2, 6]) == "4 of 8 ranks have come; ranks 0-2, 6 have not"


def test_who_has_not_come_at_the_end_is_returned_and_said_on_the_way(capsys, monkeypatch):
    monkeypatch.setattr("megaunigame.parallel.meeting.LINE_SECONDS", 0.1)
    store = dist.HashStore()
    store.set(CALL, "a")
    of_meeting = dist.PrefixStore("a", store)
    of_meeting.set(here(2), "node")
    assert await_all(of_meeting, 4, time.monotonic() + 0.3) == [1, 3]
    assert "2 of 4 ranks have come; ranks 1, 3 have not" in capsys.readouterr().err
    assert answer(store, Place(3, 4, 3, alone=False), time.monotonic()) == ("a", [1])


def test_rank_0_that_does_not_say_that_all_are_here_is_missed():
    store = dist.HashStore()
    store.set(CALL, "a")
    assert answer(store, Place(1, 2, 1, alone=False), time.monotonic()) == ("a", [0])


def meeting_of_two(store) -> tuple[list, Exception | None]:
    """What rank 1 gets from `answer`, which comes before rank 0; the name of the meeting that rank 0 then makes."""
    came, error = [], None

    def other() -> None:
        nonlocal error
        try:
            came.append(answer(store, Place(1, 2, 1, alone=False), time.monotonic() + 10))
        except MeetingError as raised:
            error = raised

    thread = threading.Thread(target=other)
    thread.start()
    time.sleep(0.3)
    if error is None:
        store.set(CALL, "second")
        assert await_all(dist.PrefixStore("second", store), 2, time.monotonic() + 10) == []
    thread.join()
    return came, error


@pytest.mark.parametrize("was", ["complete", "not complete"])
def test_a_restart_of_torchrun_meets_in_the_store_of_the_first_attempt(monkeypatch, was):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setattr("megaunigame.parallel.meeting.LOOK_SECONDS", 0.2)
    store = dist.HashStore()
    store.set(CALL, "first")
    first = dist.PrefixStore("first", store)
    if was == "complete":
        first.set(here(1), "node")
        assert await_all(first, 2, time.monotonic() + 1) == []
    assert meeting_of_two(store) == ([("second", [])], None)


def test_without_an_agent_a_complete_meeting_is_another_run(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setenv("MASTER_PORT", "1")
    store = dist.HashStore()
    store.set(CALL, "first")
    dist.PrefixStore("first", store).set("all here", "")
    came, error = meeting_of_two(store)
    assert came == [] and "a run whose ranks are all there" in str(error) and "that rank 0 names" in str(error)


def test_two_connections_of_two_ranks(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    met = []
    other = threading.Thread(target=lambda: met.append(meet(Place(1, 2, 1, alone=False), 20)))
    other.start()
    first = meet(Place(0, 2, 0, alone=False), 20)
    other.join()
    first.connect().set("a", "1")
    assert met[0].connect().get("a") == b"1"
    first.store.set("a", "2")
    assert met[0].connect().get("a") == b"1", "the line and the process group share keys"


def test_a_rank_that_does_not_reach_rank_0_says_where_it_looked(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port := free_port()))
    with pytest.raises(
        MeetingError, match=rf"rank 3 on \S+ does not reach rank 0 at 127\.0\.0\.1:{port} \(Connection refused\)"
    ):
        meet(Place(3, 4, 3, alone=False), 0.3)


def test_a_port_in_use_names_a_free_one():
    text = port_in_use(1)
    assert "Port 1 of" in text and "launch/node.py --port" in text and "--master_port" in text and "--master-port" in text


def test_a_rank_that_waits_for_rank_0_is_quiet(monkeypatch, capfd):
    monkeypatch.setattr("megaunigame.parallel.meeting.LOOK_SECONDS", 0.3)
    store = dist.TCPStore("127.0.0.1", free_port(), is_master=True, wait_for_workers=False)
    assert answer(store, Place(1, 2, 1, alone=False), time.monotonic() + 1) == ("", [0])
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if "[c10d]" not in line] == [], "torch warns where the machine does not know its own name"
