"""Attention in the report: a heat picture of the steps, and the curves before and after."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from megaunigame.monitoring.attention_plots import (
    COLUMNS,
    curves_figure,
    heat_figure,
    layers_of,
    per_layer,
    read_curves,
    write_curves,
)
from megaunigame.monitoring.history import read_run_folder
from megaunigame.monitoring.report import write_report
from tests.monitoring.runs import attention_result, write_attention, write_run
from tests.monitoring.test_report import parsed


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("alone") / "run")
    write_attention(folder)
    return folder


@pytest.fixture(scope="module")
def html(run) -> str:
    return write_report(run).read_text()


def meshes(figure: Figure) -> list[np.ndarray]:
    """Values of the heat pictures, (layers, columns)."""
    found = [m for axes in figure.axes for m in axes.collections if isinstance(m, QuadMesh) and m.get_array().ndim == 2]
    return [mesh.get_array() for mesh in found if min(mesh.get_array().shape) > 1]


def test_the_report_has_one_picture_for_all_layers(run, html):
    tags = parsed(run / "report.html")
    # The fifteen pictures of any run; heat, and the curves before and after.
    assert len([link for link in tags.links if link.startswith("data:")]) == 15 + 2
    assert html.count('alt="attention by layer and step"') == 1
    assert html.count('alt="attention by layer"') == 1
    text = " ".join(tags.text)
    assert "attention/generate/weight = 5" in text and "attention/understand/rows = 8" in text
    assert "layer_07" not in text
    order = [html.index(f"<h2>{title}</h2>") for title in ("Losses", "Attention", "Optimization")]
    assert order == sorted(order)


def test_the_plot_stands_above_the_tables_of_its_suite(html):
    section = html[html.index("<h2>Evaluation: attention</h2>") :]
    assert section.index('alt="attention by layer"') < section.index("<table")
    heads = re.findall(r"<th[^>]*>([^<]*)</th>", section)
    assert {"layer_, before", "layer_, after", "target_"} <= set(heads), "a target that did not change stands once"


def test_long_tables_open_with_a_click(html):
    assert "<details><summary>understand: 30 rows</summary>" in html and "<h3>Accuracy by kind of question</h3>" in html


def test_heat_is_the_distance_from_the_target(run):
    series = read_run_folder(run).series
    generate, understand = meshes(heat_figure(series))
    assert generate.shape == understand.shape == (30, COLUMNS)
    steps, values = series["attention/generate/layer_03"]
    assert steps[0] == 1 and generate[3, 0] == pytest.approx(np.mean(values[:2]) - 0.4, abs=0.03)
    assert abs(generate[3, -1]) < 0.03 and generate[3, 0] > 0.3
    assert understand[29, 0] < -0.1, "rows are layers from the bottom, and below the target is negative"


def test_heat_without_targets_is_the_share(tmp_path):
    folder = write_run(tmp_path)
    (folder / "metrics.jsonl").unlink()
    write_attention(folder, layers=4, targets=False)
    generate, _ = meshes(heat_figure(read_run_folder(folder).series))
    assert generate[0, 0] == pytest.approx(0.85, abs=0.05)
    assert "share of attention" in [axes.get_ylabel() for axes in heat_figure(read_run_folder(folder).series).axes]


def test_steps_without_rows_and_layers_that_are_not_tapped():
    series = {
        "attention/understand/layer_02": ([1, 2, 4], [0.1, 0.2, 0.4]),
        "attention/understand/layer_10": ([1, 2, 3, 4], [0.5, 0.6, 0.7, 0.8]),
        "attention/understand/distance": ([1], [0.1]),
    }
    figure = heat_figure(series)
    (shares,) = meshes(figure)
    np.testing.assert_allclose(np.ma.filled(shares, np.nan), [[0.1, 0.2, np.nan, 0.4], [0.5, 0.6, 0.7, 0.8]])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["2", "10"]


def test_a_run_of_one_step():
    figure = heat_figure({f"attention/generate/layer_{i:02d}": ([7], [0.1 * i]) for i in range(3)})
    assert figure is not None and [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["0", "1", "2"]
    assert heat_figure({"attention/generate/distance": ([1], [0.5]), "loss/total": ([1], [0.5])}) is None


def test_what_is_part_of_the_heat_picture():
    assert per_layer("attention/generate/layer_00") and per_layer("attention/understand/target_29")
    for other in ("attention/generate/distance", "attention/generate/first_token", "loss/layer_0", "evaluation/a/b/layer_00"):
        assert not per_layer(other)


def test_curves_are_read_back_from_metrics(tmp_path):
    shares = {"generate": np.array([0.3, 0.5, 0.2])}
    metrics = attention_result(shares, {"generate": np.array([0.4, 0.4, 0.2])})["metrics"]
    curve = read_curves(metrics)["generate"]
    assert curve.mean.tolist() == [0.3, 0.5, 0.2] and curve.target.tolist() == [0.4, 0.4, 0.2]
    assert layers_of(metrics)["generate"] == [0, 1, 2]
    assert read_curves({"accuracy/mean": 0.5}) == {}
    write_curves(tmp_path / "new" / "curves.png", metrics)
    assert (tmp_path / "new" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_before_and_after_are_in_one_panel():
    aims = {"understand": np.full(3, 0.2)}
    before, after = (read_curves(attention_result({"understand": np.full(3, v)}, aims)["metrics"]) for v in (0.1, 0.2))
    (axes,) = curves_figure(after, before).axes
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert list(lines["before"]) == [0.1] * 3 and list(lines["after"]) == [0.2] * 3
    assert "before" not in {line.get_label() for line in curves_figure(after).axes[0].lines}


def test_an_evaluation_before_that_lacked_the_suite(tmp_path):
    folder = write_run(tmp_path)
    write_attention(folder, layers=3)
    first = folder / "evaluation" / "step-00000000.json"
    result = json.loads(first.read_text())
    del result["suites"]["attention"]
    first.write_text(json.dumps(result))
    assert "Measured at step 300" in write_report(folder).read_text()
