"""How often an evaluation gathers the weights, and what is said and refused before the first step; with ranks:
tests/multi_process/resume.py."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest

from megaunigame.config import AUTO, EACH_CALL, ONCE, EvaluationConfig
from megaunigame.errors import ConfigError
from megaunigame.training import gathering
from megaunigame.training.gathering import check_drawing, gathers_once, weights_for_suites

LEARNER = SimpleNamespace(module=SimpleNamespace(calls_per_sample=576))
SUITES = [SimpleNamespace(drawings=lambda ranks, pictures=pictures: pictures // ranks) for pictures in (400, 0, 40)]


@pytest.fixture
def partitioned(monkeypatch):
    """200 bytes of weights, half a second to gather, and what is asked: whether they fit."""
    asked: list[float] = []
    monkeypatch.setattr(gathering, "whole_bytes", lambda learner: 200)
    monkeypatch.setattr(gathering, "gather_seconds", lambda learner: 0.5)
    monkeypatch.setattr(gathering, "fits_whole", lambda learner, share: asked.append(share) or share >= 0.5)
    return asked


def settings(**changed) -> EvaluationConfig:
    return EvaluationConfig(**{"gather": EACH_CALL, "gather_share": 0.7, "most_drawing_hours": 0.0, **changed})


def test_weights_are_gathered_once_where_it_is_asked_or_they_fit(partitioned, monkeypatch):
    assert gathers_once(LEARNER, settings(gather=ONCE)) and not gathers_once(LEARNER, settings()) and partitioned == []
    assert gathers_once(LEARNER, settings(gather=AUTO)) and not gathers_once(LEARNER, settings(gather=AUTO, gather_share=0.4))
    assert partitioned == [0.7, 0.4]
    monkeypatch.setattr(gathering, "whole_weights", lambda learner: "whole")
    assert weights_for_suites(LEARNER, settings(gather=ONCE)) == "whole"
    assert isinstance(weights_for_suites(LEARNER, settings()), contextlib.nullcontext)
    monkeypatch.setattr(gathering, "whole_bytes", lambda learner: 0)
    assert not gathers_once(LEARNER, settings(gather=ONCE)), "they always are whole"


@pytest.mark.parametrize(("most", "refused"), [(0.0, False), (8.8, False), (8.7, True)], ids=["any", "so many hours", "fewer"])
def test_the_hours_of_drawing_are_said_and_may_be_refused(partitioned, most, refused):
    """110 pictures of each of four ranks, 576 calls each, half a second for a gather."""
    said: list[str] = []
    with pytest.raises(ConfigError, match="most_drawing_hours=8.7.* 8.8 h in all") if refused else contextlib.nullcontext():
        check_drawing(LEARNER, settings(most_drawing_hours=most), SUITES, 4, said.append)
    assert (
        len(said) == 1 and "takes 63,360 calls of each rank" in said[0] and said[0].endswith("(200 B): at least 8.8 h in all")
    )


def test_nothing_is_said_where_nothing_is_gathered(partitioned, monkeypatch):
    def say(text: str) -> None:
        raise AssertionError(text)

    check_drawing(LEARNER, settings(), SUITES[1:2], 4, say)
    check_drawing(LEARNER, settings(gather=ONCE), SUITES, 4, say)
    monkeypatch.setattr(gathering, "whole_bytes", lambda learner: 0)
    check_drawing(LEARNER, settings(), SUITES, 4, say)


def test_durations_are_in_words():
    assert [gathering._duration(seconds / 3600) for seconds in (5, 60, 90, 3600, 9000)] == [
        *("5.0 s", "1.0 min", "1.5 min", "1.0 h", "2.5 h")
    ]
