"""The learning rate as a function of the step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaunigame.config import ScheduleConfig
from megaunigame.engine.schedule import lr_factor


@given(
    kind=st.sampled_from(["cosine", "linear", "constant", "flat_linear"]),
    steps=st.integers(1, 500),
    warm=st.floats(0, 1),
    floor=st.floats(0, 1),
)
def test_rises_through_the_warm_up_and_never_again(kind, steps, warm, floor):
    schedule = ScheduleConfig(steps=steps, kind=kind, warmup_steps=int(warm * steps), min_ratio=floor)
    factors = [lr_factor(schedule, step) for step in range(steps)]
    warmup, rest = factors[: schedule.warmup_steps], factors[schedule.warmup_steps :]
    assert all(0 < f <= 1 for f in warmup) and warmup == sorted(warmup)
    assert all(floor - 1e-9 <= f <= 1 + 1e-9 for f in rest)
    assert rest == sorted(rest, reverse=True)


def test_known_values():
    cosine = ScheduleConfig(steps=110, kind="cosine", warmup_steps=10, min_ratio=0.1)
    assert lr_factor(cosine, 0) == pytest.approx(0.1)
    assert lr_factor(cosine, 9) == lr_factor(cosine, 10) == 1.0
    assert lr_factor(cosine, 60) == pytest.approx(0.55)
    linear = ScheduleConfig(steps=110, kind="linear", warmup_steps=10, min_ratio=0.2)
    assert [lr_factor(linear, step) for step in (4, 10, 60, 109, 110)] == pytest.approx([0.5, 1.0, 0.6, 0.208, 0.2])
    flat = ScheduleConfig(steps=100, kind="flat_linear", min_ratio=0.0)
    assert lr_factor(flat, 50) == 1.0
    assert lr_factor(flat, 75) == pytest.approx(0.5)
