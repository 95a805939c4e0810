"""Lines of pictures: written by a step, read back, shown in the report."""

from __future__ import annotations

import torch

from megaunigame.monitoring.monitor import Monitor
from megaunigame.monitoring.panels import read_panels
from megaunigame.monitoring.report import write_report


def monitor(folder, rank=0) -> Monitor:
    return Monitor(folder, every=1, total_steps=9, start_step=1, rank=rank, tensorboard=False, progress=False)


def line(value: int) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    picture = torch.full((3, 8, 8), value, dtype=torch.uint8)
    return {"question": f"is <{value}> it ?", "answer": "no"}, {"source": picture, "adversarial": 255 - picture}


def test_what_is_written_is_read_back_in_order(tmp_path):
    run = monitor(tmp_path)
    for step in (7, 2):
        run.panels(step, [line(step), line(step + 1)])
    run.panels(3, [])
    assert [(s.step, len(s.lines)) for s in read_panels(tmp_path)] == [(2, 2), (7, 2)]
    assert all(
        (tmp_path / file).is_file() for s in read_panels(tmp_path) for entry in s.lines for file in entry["files"].values()
    )


def test_other_ranks_write_nothing(tmp_path):
    monitor(tmp_path, rank=1).panels(2, [line(2)])
    assert read_panels(tmp_path) == []


def test_the_report_shows_the_first_the_middle_and_the_last_step(tmp_path):
    run = monitor(tmp_path)
    for step in range(1, 8):
        run.panels(step, [line(step)])
    text = write_report(tmp_path).read_text()
    assert [f"<h3>Step {step}</h3>" in text for step in range(1, 8)] == [True, False, False, True, False, False, True]
    assert "is &lt;4&gt; it ?" in text and text.count('class="picture"') == 6
