"""Lines of pictures: written by a step, read back, shown in the report."""

from __future__ import annotations

import torch

from megaunigame.monitoring.panels import read_panels
from megaunigame.monitoring.report import write_report
from megaunigame.pixels import Panel
from tests.monitoring.test_monitor import monitor


def line(value: int, title: str = "Shown") -> Panel:
    picture = torch.full((3, 8, 8), value, dtype=torch.uint8)
    texts = {"question": f"is <{value}> it ?", "answer": "no"}
    return Panel(title, {"source": picture, "other": 255 - picture}, texts)


def test_what_is_written_is_read_back_in_order(tmp_path):
    run = monitor(tmp_path)
    for step in (7, 2):
        run.panels(step, [line(step), line(step + 1)])
    run.panels(3, [])
    assert [(step, len(lines)) for step, lines in read_panels(tmp_path).items()] == [(2, 2), (7, 2)]
    files = [file for lines in read_panels(tmp_path).values() for entry in lines for file in entry["files"].values()]
    assert all((tmp_path / file).is_file() for file in files)


def test_the_report_shows_the_first_the_middle_and_the_last_step(tmp_path):
    run = monitor(tmp_path)
    for step in range(1, 8):
        run.panels(step, [line(step)])
    text = write_report(tmp_path).read_text()
    assert [f"<h3>Step {step}</h3>" in text for step in range(1, 8)] == [True, False, False, True, False, False, True]
    assert "is &lt;4&gt; it ?" in text and text.count('class="picture"') == 6


def test_every_title_is_a_heading_over_its_own_lines(tmp_path):
    run = monitor(tmp_path)
    for step in range(1, 6):
        run.panels(step, [line(step, "Drawn <twice>")] + ([line(10 * step, "Attacked")] if step > 2 else []))
    (tmp_path / "panels" / "step-00000009.json").write_text(
        '{"step": 9, "lines": [{"texts": {"question": "old"}, "files": {}}]}'  # of a run before lines had titles
    )
    text = write_report(tmp_path).read_text()
    drawn, attacked, old = (text.index(f"<h2>{title}</h2>") for title in ("Drawn &lt;twice&gt;", "Attacked", "Pictures"))
    assert drawn < attacked < old
    assert [f"<h3>Step {step}</h3>" in text[drawn:attacked] for step in range(1, 6)] == [True, False, True, False, True]
    assert [f"is &lt;{n}&gt; it ?" in text[attacked:old] for n in (20, 30, 40, 50)] == [False, True, True, True]
