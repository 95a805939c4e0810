"""What is a spike, and what is not."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaunigame.training.spikes import FLOOR, LEAST, SpikeDetector

FINITE = st.floats(0, 1e6)
WINDOW = 64


def fed(values, limit: float = 6.0, window: int = WINDOW) -> tuple[SpikeDetector, list[int]]:
    """A detector after `values`, and the indices of the spikes among them."""
    detector = SpikeDetector(limit, window)
    return detector, [number for number, value in enumerate(values) if detector.look({"x": value})]


@given(st.floats(1e-6, 1e6), st.integers(1, 200))
def test_a_constant_series_has_no_spike(value, length):
    assert fed([value] * length)[1] == []


@given(st.lists(FINITE, max_size=LEAST), st.floats(1e9, 1e30))
def test_nothing_is_a_spike_in_the_first_steps(values, high):
    assert fed([*values[: LEAST - 1], high])[1] == []


@given(st.lists(st.floats(0.9, 1.1), min_size=LEAST, max_size=WINDOW), st.floats(4.0, 1e30))
def test_one_high_value_is_a_spike_and_the_next_ones_are_not(values, high):
    assert fed([*values, high, *values])[1] == [len(values)]


@given(st.lists(st.floats(0.9, 1.1), min_size=LEAST, max_size=WINDOW), st.floats(-1e30, 0.9))
def test_a_low_value_is_none(values, low):
    assert fed([*values, low])[1] == []


@given(st.lists(st.floats(1.0, 1.1), min_size=LEAST, max_size=WINDOW), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_what_is_not_finite_is_no_spike_and_is_forgotten(values, broken):
    detector, spikes = fed([*values, broken, broken])
    assert spikes == [] and detector.series["x"] == fed(values)[0].series["x"]


@given(st.integers(0, 3))
def test_a_new_level_is_not_a_spike_for_ever(seed):
    values = [1.0 + 0.01 * ((seed + i) % 3) for i in range(WINDOW)] + [
        10.0 + 0.01 * ((seed + i) % 3) for i in range(2 * WINDOW)
    ]
    spikes = fed(values)[1]
    assert spikes == list(range(WINDOW, WINDOW + len(spikes))) and 0 < len(spikes) <= WINDOW // 2 + 1


def test_heavy_tails_raise_few_alarms_with_the_default_limit():
    import numpy as np

    rng = np.random.default_rng(0)
    gradients = np.exp(rng.normal(0, 0.5, 5000))  # log-normal, as gradient norms are
    assert len(fed(gradients, limit=20.0, window=128)[1]) == 0
    assert 0 < len(fed(gradients, limit=3.0, window=128)[1]) < 500


def test_a_spike_says_what_it_is():
    detector, _ = fed([1.0] * WINDOW)
    (spike,) = detector.look({"x": 3.0})
    assert (spike.name, spike.value, spike.median) == ("x", 3.0, 1.0) and spike.sigmas == pytest.approx(2.0 / FLOOR)
    detector.look({"x": 1.0, "y": 5.0})
    assert list(detector.series["y"]) == [5.0], "each series has its own values"


def test_the_largest_comes_first():
    detector = SpikeDetector(6.0, WINDOW)
    for _ in range(WINDOW):
        detector.look({"x": 1.0, "y": 1.0})
    assert [spike.name for spike in detector.look({"x": 5.0, "y": 50.0})] == ["y", "x"]


def test_the_exact_formula():
    values = [1.0, 2.0, 3.0, 4.0, 10.0] * 8
    detector = fed(values)[0]
    (spike,) = detector.look({"x": 3.0 + 6.1 * 1.4826})  # median 3 (mean 4), MAD 1
    assert spike.sigmas == pytest.approx(6.1)
    assert not fed(values)[0].look({"x": 3.0 + 5.9 * 1.4826})


def test_without_a_limit_nothing_is_a_spike_and_the_values_are_kept():
    detector, spikes = fed([1.0] * 50 + [1e9], limit=0.0)
    assert spikes == [] and detector.state_dict() == {"x": [1.0] * 50 + [1e9]}


@given(st.lists(FINITE, min_size=1, max_size=3 * WINDOW), st.lists(FINITE, min_size=1, max_size=WINDOW))
def test_a_resumed_detector_says_the_same(before, after):
    whole = fed(before)[0]
    resumed = SpikeDetector(6.0, WINDOW)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    assert [whole.look({"x": x}) for x in after] == [resumed.look({"x": x}) for x in after]
    assert len(resumed.series["x"]) == min(WINDOW, len(before) + len(after))


def test_a_shorter_window_keeps_the_last_values():
    resumed = SpikeDetector(6.0, 2)
    resumed.load_state_dict({"x": [1.0, 2.0, 3.0]})
    assert list(resumed.series["x"]) == [2.0, 3.0]
