"""The report in a real browser: its script runs under its own policy and draws. Skipped where no Chromium is installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from megaunigame.monitoring.report import write_report
from tests.monitoring.runs import write_run

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_the_script_draws_every_chart(tmp_path):
    folder = write_run(tmp_path / "run")
    run = json.loads((folder / "run.json").read_text())
    began = ["1970-01-01T00:16:00+00:00", "1970-01-01T00:17:30+00:00"]
    (folder / "run.json").write_text(json.dumps({**run, "launches": began}))
    page = write_report(folder)
    drawn = shown_by_browser(page, tmp_path)
    figures = re.findall(r'<figure class="chart.*?</figure>', drawn, re.DOTALL)
    assert len(figures) == page.read_text().count('<figure class="chart') > 8
    for figure in figures:
        assert re.search(r'<path class="line"[^>]* d="M[\d.]+ [\d.]+L', figure) and figure.count('class="launch"') == 1
    assert figures[0].count('class="swatch"') == 4 and "log scale" in figures[0]


DRAGS = """
setTimeout(() => { // after the charts are drawn
  const svg = document.querySelector("figure.chart svg"), box = svg.getBoundingClientRect();
  const at = (type, x) => svg.dispatchEvent(new PointerEvent(type, { clientX: box.left + x, pointerType: "mouse" }));
  for (let n = 0; n < 12; n++) { at("pointerdown", 300); at("pointermove", 310); at("pointerup", 310); }
}, 500);
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_many_drags_still_show_two_points(tmp_path):
    page = write_report(write_run(tmp_path / "run"))
    text = re.sub(r"<meta[^>]*Content-Security-Policy[^>]*>", "", page.read_text())
    page.write_text(text.replace("</body>", f"<script>{DRAGS}</script></body>"))
    figure = re.findall(r'<figure class="chart.*?</figure>', shown_by_browser(page, tmp_path), re.DOTALL)[0]
    places = [
        float(x) for path in re.findall(r'class="line"[^>]* d="M([^"]+)"', figure) for x in re.findall(r"([\d.-]+) ", path)
    ]
    assert len(places) >= 4 * 2 and max(map(abs, places)) < 3000, "the points on both sides are in the chart or next to it"
    assert 'hidden="">all steps' not in figure


def shown_by_browser(page, tmp_path) -> str:
    """The document after its scripts have run."""
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
    quiet = ("--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}")
    command = [BROWSER, *options, *quiet, "--virtual-time-budget=3000", "--dump-dom", page.absolute().as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
