"""The ranks meet: attendance, and what stays away. Ports and missing ranks over real sockets: test_watch.py."""

from __future__ import annotations

import threading
import time

import pytest
import torch.distributed as dist

from megaunigame.errors import ConfigError
from megaunigame.parallel.environment import Place
from megaunigame.parallel.meeting import attendance, await_all, await_word, meet, port_in_use
from megaunigame.parallel.processes import free_port


def test_attendance():
    assert attendance(8, [5]) == "7 of 8 ranks have come; rank 5 has not"
    assert attendance(8, [0, 1, 2, 6]) == "4 of 8 ranks have come; ranks 0-2, 6 have not"


def test_who_has_not_come_at_the_end_is_returned_and_said_on_the_way(capsys, monkeypatch):
    monkeypatch.setattr("megaunigame.parallel.meeting.LINE_SECONDS", 0.1)
    store = dist.HashStore()
    for rank in (0, 2):
        store.set(f"here/{rank}", "node")
    assert await_all(store, 4, time.monotonic() + 0.3) == [1, 3]
    assert "2 of 4 ranks have come; ranks 1, 3 have not" in capsys.readouterr().err
    assert await_word(store, 4, time.monotonic()) == [1, 3]


def test_all_go_on_when_all_have_come():
    store = dist.HashStore()
    for rank in range(2):
        store.set(f"here/{rank}", "node")
    assert await_all(store, 2, time.monotonic() + 5) == [] == await_word(store, 2, time.monotonic() + 5)


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
        ConfigError, match=rf"rank 3 on \S+ does not reach rank 0 at 127\.0\.0\.1:{port} \(Connection refused\)"
    ):
        meet(Place(3, 4, 3, alone=False), 0.3)


def test_a_port_in_use_names_a_free_one():
    text = port_in_use(1)
    assert "Port 1 of" in text and "--master_port" in text and "--master-port" in text
