"""How the ranks of a job agree on what is to be done."""

from __future__ import annotations

import pytest

from megaunigame.errors import ConfigError, MeetingError
from megaunigame.inference import team
from megaunigame.inference.team import Team
from megaunigame.parallel import meeting
from megaunigame.parallel.environment import Place


def test_who_has_not_come_is_said_without_a_setting_that_commands_do_not_have(monkeypatch):
    monkeypatch.setattr(team, "place_of_process", lambda: Place(0, 3, 0, alone=False))
    monkeypatch.setattr(team, "MEET_SECONDS", 0.2)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(meeting.free_port()))
    with pytest.raises(MeetingError, match=r"^After 0 s, 1 of 3 ranks have come") as caught:
        Team.join()
    assert "timeout_minutes" not in str(caught.value)


class LimitedStore(dict):
    """That of torchrun, as far as it is used: no value of more than 8 MiB."""

    def set(self, key: str, value: str) -> None:
        assert len(value) <= 8 * 1024**2
        self[key] = value.encode()

    def wait(self, keys: list[str], timeout) -> None:
        assert all(key in self for key in keys)

    def get(self, key: str) -> bytes:
        return self[key]


def test_ranks_hear_of_more_items_than_one_value_of_the_store_holds():
    store, pending = LimitedStore(), list(range(1_200_000))
    first, second = (Team(Place(rank, 2, rank, alone=False), store) for rank in range(2))
    assert first.tell({"model": "a"}, pending) == pending
    assert second.tell({"model": "a"}, []) == pending


def test_a_rank_that_found_another_checkpoint_is_refused():
    store = LimitedStore()
    first, second = (Team(Place(rank, 2, rank, alone=False), store) for rank in range(2))
    first.tell({"model": "a", "--temperature": 0.5, "input": "x"}, [3])
    assert second.tell({"model": "a", "--temperature": 0.5, "input": "x"}, []) == [3]
    with pytest.raises(ConfigError, match="another job than rank 0. Its model: b; that of rank 0: a. .*RUN/checkpoints/step-"):
        second.tell({"model": "b", "--temperature": 0.5, "input": "x"}, [])
    with pytest.raises(ConfigError, match="Its input: y; that of rank 0: x"):
        second.tell({"model": "a", "--temperature": 0.5, "input": "y"}, [])
