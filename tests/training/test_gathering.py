"""How an evaluation gets its weights, and what is said and refused before the first step; with ranks:
tests/multi_process/resume.py."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest

from megaunigame.config import AUTO, EACH_CALL, ONCE, TENSOR_PARALLEL, EvaluationConfig
from megaunigame.errors import ConfigError
from megaunigame.training import gathering
from megaunigame.training.gathering import SuiteWeights

LEARNER = SimpleNamespace(module=SimpleNamespace(calls_per_sample=576))
SUITES = [SimpleNamespace(drawings=lambda ranks, pictures=pictures: pictures // ranks) for pictures in (400, 0, 40)]
MESH = SimpleNamespace(data=SimpleNamespace(size=4))


@pytest.fixture
def partitioned(monkeypatch):
    """200 bytes of weights and half a second to gather them; what fits whole or divided by 2, into which share."""
    fits = {"whole": 0.5, "divided": 0.25}
    monkeypatch.setattr(gathering, "whole_bytes", lambda learner: 200)
    monkeypatch.setattr(gathering, "gather_seconds", lambda learner: 0.5)
    monkeypatch.setattr(gathering, "fits_whole", lambda learner, share: share >= fits["whole"])
    monkeypatch.setattr(gathering, "fits_divided", lambda learner, number, share: share >= fits["divided"])
    monkeypatch.setattr(SuiteWeights, "_parts", lambda self, learner: (2, ""))


def weights(**changed) -> SuiteWeights:
    given = {"gather": EACH_CALL, "gather_share": 0.7, "most_drawing_hours": 0.0, **changed}
    return SuiteWeights(EvaluationConfig(**given), MESH, timeout_minutes=5.0)


@pytest.mark.usefixtures("partitioned")
def test_the_way_that_is_asked_for_or_the_first_that_fits(monkeypatch):
    for asked in (ONCE, TENSOR_PARALLEL, EACH_CALL):
        assert weights(gather=asked, gather_share=0.0).way(LEARNER) == asked == weights(gather=asked).way(LEARNER)
    found = [weights(gather=AUTO, gather_share=share).way(LEARNER) for share in (0.5, 0.4, 0.25, 0.2)]
    assert found == [ONCE, TENSOR_PARALLEL, TENSOR_PARALLEL, EACH_CALL]
    monkeypatch.setattr(SuiteWeights, "_parts", lambda self, learner: (1, "why not"))
    assert weights(gather=AUTO, gather_share=0.4).way(LEARNER) == EACH_CALL
    monkeypatch.setattr(gathering, "whole_bytes", lambda learner: 0)
    assert weights(gather=ONCE).way(LEARNER) == EACH_CALL, "they always are whole"


@pytest.mark.usefixtures("partitioned")
@pytest.mark.parametrize(("most", "refused"), [(0.0, False), (8.8, False), (8.7, True)], ids=["any", "so many hours", "fewer"])
def test_the_hours_of_drawing_are_said_and_may_be_refused(most, refused):
    """110 pictures of each of four ranks, 576 calls each, half a second for a gather."""
    said: list[str] = []
    with pytest.raises(ConfigError, match="most_drawing_hours=8.7.* 8.8 h in all") if refused else contextlib.nullcontext():
        weights(most_drawing_hours=most).check_drawing(LEARNER, SUITES, said.append)
    assert (
        len(said) == 1
        and "takes 63,360 calls of each rank" in said[0]
        and said[0].endswith("200 B of weights: at least 8.8 h in all")
    )


@pytest.mark.usefixtures("partitioned")
def test_nothing_is_said_where_nothing_is_gathered_in_calls(monkeypatch):
    def say(text: str) -> None:
        raise AssertionError(text)

    weights().check_drawing(LEARNER, SUITES[1:2], say)
    weights(gather=ONCE).check_drawing(LEARNER, SUITES, say)
    monkeypatch.setattr(gathering, "whole_bytes", lambda learner: 0)
    weights().check_drawing(LEARNER, SUITES, say)


def test_durations_are_in_words():
    assert [gathering._duration(seconds / 3600) for seconds in (5, 60, 90, 3600, 9000)] == [
        *("5.0 s", "1.0 min", "1.5 min", "1.0 h", "2.5 h")
    ]
