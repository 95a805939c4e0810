"""Links from a report to those of other runs: relative, and only where there is one."""

from __future__ import annotations

import json
import re
from pathlib import Path

from megaunigame.monitoring.report import write_report
from tests.monitoring.test_report import parsed


def run_in(folder: Path, *, report: bool = False, **record: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"name": "n", **record}))
    if report:
        (folder / "report.html").write_text("a report")
    return folder


def links(page: Path) -> list[str]:
    return [link for link in parsed(page).links if not link.startswith(("#", "data:"))]


def test_what_the_run_began_with(tmp_path):
    first = run_in(tmp_path / "elsewhere" / "first run", report=True)
    origin = {"weights_from": str(first / "checkpoints" / "step-00000060"), "model": str(tmp_path / "models" / "janus")}
    run = run_in(tmp_path / "runs" / "second", origin=origin)
    page = write_report(run)
    assert links(page) == ["../../elsewhere/first%20run/report.html"]
    assert (run / links(page)[0].replace("%20", " ")).resolve() == first / "report.html"
    text = " ".join(parsed(page).text)
    assert "Began with the weights" in text and "../../elsewhere/first run/checkpoints/step-00000060" in text
    assert "../../models/janus" in text


def test_a_folder_that_is_named_through_a_link(tmp_path):
    run_in(tmp_path / "disk" / "a", report=True)
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    run = run_in(tmp_path / "runs" / "b", origin={"weights_from": str(tmp_path / "runs" / "a")})
    page = write_report(run)
    assert set(links(page)) == {"../a/report.html"}, "it holds however the page is opened"


def test_runs_in_the_same_folder(tmp_path):
    run = run_in(tmp_path / "b")
    for name, report in (("a10", True), ("a2", True), ("c <x>", False)):
        run_in(tmp_path / name, report=report)
    (tmp_path / "data").mkdir()
    page = write_report(run)
    assert links(page) == ["../a2/report.html", "../a10/report.html"]
    assert "<li><code>../c &lt;x&gt;</code></li>" in page.read_text() and "../data" not in page.read_text()
    assert "Other runs in the same folder (3)." in page.read_text()


def test_runs_of_a_sweep(tmp_path):
    for arm in ("sft", "game"):
        for seed in (0, 1):
            folder = run_in(tmp_path / arm / f"seed-{seed}", report=True)
            (folder / "sweep_run.json").write_text("{}")
    page = write_report(tmp_path / "sft" / "seed-1")
    assert sorted(links(page)) == [f"../{run}/report.html" for run in ("../game/seed-0", "../game/seed-1", "seed-0")]
    assert "Other runs of the same sweep (3)." in page.read_text()


def test_a_run_alone_has_no_such_section(tmp_path):
    page = write_report(run_in(tmp_path / "only"))
    assert "Related runs" not in page.read_text() and links(page) == []


def test_places_that_no_file_can_have(tmp_path):
    """From a run.json that somebody has sent: shown as text."""
    origin = {"weights_from": "javascript:alert(1)", "model": "a\0b", "adapter": '"><script>'}
    page = write_report(run_in(tmp_path / "run", origin=origin))
    assert links(page) == [] and len(re.findall("<script", page.read_text())) == 2
