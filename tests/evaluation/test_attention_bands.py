"""Bands: the best split, the fewest of them, and the targets they give."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaunigame.attention.targets import Target, read_targets, write_targets
from megaunigame.errors import ConfigError
from megaunigame.evaluation.attention.bands import (
    DELTAS,
    GRID,
    MOST_BANDS,
    enough_bands,
    provenance,
    quantized,
    split,
    squared_error,
    stretched,
)
from megaunigame.evaluation.attention.curves import Curve

shares = st.floats(0, 1, width=32)
curves = st.lists(shares, min_size=1, max_size=12)


def curve(mean: list[float], spread: float = 0.0) -> Curve:
    return Curve(list(mean), [spread] * len(mean), [0.0] * len(mean), samples=5)


@given(st.lists(shares, min_size=1, max_size=8), st.data())
def test_no_other_split_is_better(values, data):
    count = data.draw(st.integers(1, len(values)))
    borders = split(values, count)
    assert borders[0] == 0 and borders[-1] == len(values) and len(borders) == count + 1
    assert all(a < b for a, b in pairwise(borders))
    inner = combinations(range(1, len(values)), count - 1)
    best = min(squared_error(np.array(values), [0, *cut, len(values)]) for cut in inner)
    assert squared_error(np.array(values), borders) == pytest.approx(best, abs=1e-9)


@given(curves)
def test_more_bands_fit_no_worse(values):
    errors = [squared_error(np.array(values), split(values, count)) for count in range(1, len(values) + 1)]
    assert all(b <= a + 1e-9 for a, b in pairwise(errors)) and errors[-1] == pytest.approx(0, abs=1e-12)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 4)), min_size=1, max_size=5), st.integers(0, 2**31))
def test_steps_are_found_again(steps, seed):
    """A curve of clear steps under noise far below a target's grid comes back as those steps."""
    levels = [0.1 + 0.2 * level for _, level in steps]
    clean = np.repeat(levels, [length for length, _ in steps])
    noisy = clean + np.random.default_rng(seed).uniform(-0.01, 0.01, len(clean))
    bands = 1 + sum(a != b for a, b in pairwise(levels))
    assert [target.target for target in quantized(curve(noisy), bands)] == pytest.approx(clean.tolist())


@given(curves, st.floats(0, 0.5))
def test_targets_are_on_the_grid_and_near_their_band(values, spread):
    targets = quantized(curve(values, spread))
    assert len(targets) == len(values) and {target.delta for target in targets} <= set(DELTAS)
    for first, end in pairwise(split(values, enough_bands(values))):
        (target,) = set(targets[first:end])
        assert target.target == round(round(target.target / GRID) * GRID, 2) and 0 <= target.target <= 1
        assert abs(target.target - np.mean(values[first:end])) <= GRID / 2 + 1e-6


@given(curves)
def test_no_fewer_bands_are_enough(values):
    count = enough_bands(values)
    error = {n: (squared_error(np.array(values), split(values, n)) / len(values)) ** 0.5 for n in range(1, count + 1)}
    assert all(error[n] > GRID for n in range(1, count)) and count <= MOST_BANDS
    assert error[count] <= GRID or count == MOST_BANDS


def test_delta_grows_with_the_spread():
    deltas = [quantized(curve([0.4, 0.4], spread), 1)[0].delta for spread in (0.0, 0.04, 0.06, 0.11, 0.4)]
    assert deltas == [0.05, 0.05, 0.1, 0.2, 0.2]
    # Layers that differ count as samples that differ do.
    assert quantized(curve([0.25, 0.55]), 1) == [Target(0.2, 0.4)] * 2


def test_a_file_of_measured_targets_is_read_again(tmp_path):
    measured = {"generate": curve([0.8] * 3 + [0.41] * 2, 0.12), "understand": curve([0.1, 0.11, 0.3, 0.31, 0.29])}
    targets = {name: quantized(found) for name, found in measured.items()}
    write_targets(tmp_path / "t.yaml", targets, provenance(measured, "a/model", "some/shards", 5))
    assert read_targets(tmp_path / "t.yaml", 5) == targets
    assert [target.target for target in targets["understand"]] == [0.1, 0.1, 0.3, 0.3, 0.3]
    text = (tmp_path / "t.yaml").read_text()
    assert "a/model" in text and "some/shards" in text and "generate: 5 samples" in text and "0.410 +- 0.120" in text
    assert "  - {layers: [0, 1], delta: 0.05, target: 0.1}" in text and "stretched" not in text


def test_a_curve_is_stretched_by_relative_depth():
    measured = Curve([0.1, 0.5, 0.3], [0.01, 0.03, 0.02], [0.0, 0.6, 0.3], samples=9)
    assert stretched(measured, 3) == measured
    longer = stretched(measured, 6)  # middles at 1/12, 3/12, ... of the depth; measured ones at 1/6, 3/6, 5/6
    assert longer.mean == pytest.approx([0.1, 0.2, 0.4, 0.45, 0.35, 0.3])
    assert longer.spread == pytest.approx([0.01, 0.015, 0.025, 0.0275, 0.0225, 0.02])
    assert longer.first == pytest.approx([0.0, 0.15, 0.45, 0.525, 0.375, 0.3]) and longer.samples == 9
    assert stretched(measured, 1).mean == pytest.approx([0.5])


@pytest.mark.parametrize("bands", [-1, 4])
def test_more_bands_than_layers(bands):
    with pytest.raises(ConfigError, match=f"{bands} bands of 3 layers; give 1 to 3"):
        quantized(curve([0.1, 0.2, 0.3]), bands)
