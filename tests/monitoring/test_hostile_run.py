"""Reports of run folders that somebody else has sent: text stays text, and no file of another folder is shown."""

from __future__ import annotations

import base64
import json
import re
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from PIL import EpsImagePlugin, Image

from megaunigame.monitoring.history import read_run_folder
from megaunigame.monitoring.report import write_report
from megaunigame.monitoring.run_forms import is_inside
from tests.faults.hostile_bytes import changed, values
from tests.monitoring.runs import write_run

EVIL = '"><script>alert(1)</script>'
SECRET = (1, 2, 3)


def picture_uris(page: str) -> list[str]:
    return re.findall('class="picture"[^>]*src="([^"]+)"', page)


def only_our_scripts(page: Path) -> str:
    """The page without the two elements that each report has; asserts that it has no other."""
    text = page.read_text()
    begin, data = text.index('<script type="application/json" id="curves">'), text.rindex("<script>")
    assert text.count("<script") == 2 and text.count("</script") == 2 and begin < data
    return text[:begin] + text[begin:data].replace("<script", "")


def write_panels(folder: Path, *files: object, step: object = 1, text: str = "t") -> Path:
    (folder / "panels").mkdir(parents=True, exist_ok=True)
    lines = [{"title": text, "texts": {text: text}, "files": {text: file}} for file in files]
    file = folder / "panels" / "step-00000001.json"
    file.write_text(json.dumps({"step": step, "lines": lines}))
    return file


@pytest.fixture
def run(tmp_path) -> Path:
    Image.new("RGB", (8, 8), SECRET).save(tmp_path / "secret.png")
    folder = tmp_path / "run"
    (folder / "panels").mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(folder / "panels" / "a.png")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run with evaluations, and without curves, which take time to draw."""
    folder = write_run(tmp_path_factory.mktemp("whole"))
    (folder / "metrics.jsonl").unlink()
    shutil.copyfile(next(folder.rglob("*.png")), folder / "shown.png")
    write_panels(folder, "shown.png")
    return folder


@pytest.mark.fault(
    "a run folder whose files name pictures of other folders, by `..`, an absolute path or a link",
    does="the report leaves them out, and says so",
    lost="the pictures",
)
@pytest.mark.parametrize("name", ["../secret.png", "panels/../../secret.png", "ABSOLUTE", "..\\secret.png", "a\0.png", "", 3])
def test_pictures_of_other_folders_are_not_in_a_report(run, caplog, name):
    file = write_panels(run, "panels/a.png", str(run.parent / "secret.png") if name == "ABSOLUTE" else name)
    assert picture_uris(write_report(run).read_text()) == []
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith(f"{file}: lines[1].files['t'] must be a file name inside of the run folder; got ")
    evaluation = json.dumps(
        {
            "step": 1,
            "suites": {
                "s": {
                    "metrics": {},
                    "tables": [],
                    "questions": [],
                    "pictures": [
                        {"file": name if name != "ABSOLUTE" else "/secret.png", "caption": "", "row": "0", "column": "c"}
                    ],
                }
            },
        }
    )
    (run / "evaluation").mkdir()
    (run / "evaluation" / "step-00000001.json").write_text(evaluation)
    assert read_run_folder(run).evaluations == []


def test_links_out_of_the_run_folder_are_not_followed_into_a_report(run, caplog):
    (run / "panels" / "b.png").symlink_to(run.parent / "secret.png")
    (run / "panels" / "c.png").symlink_to("a.png")
    write_panels(run, "panels/b.png", "panels/c.png")
    page = write_report(run).read_text()
    assert len(picture_uris(page)) == 1 and page.count("picture outside of the run folder") == 1
    assert "b.png is outside of the run folder: the report does not show it" in caplog.text


def test_only_pictures_are_opened_and_damaged_ones_are_said(run, caplog, monkeypatch):
    """An EPS would start Ghostscript."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("Ghostscript was started"))
    (run / "panels" / "b.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n")
    (run / "panels" / "c.png").write_bytes((run / "panels" / "a.png").read_bytes()[:45])
    (run / "panels" / "d.png").mkdir()
    write_panels(run, *(f"panels/{letter}.png" for letter in "abcde"))
    page = write_report(run).read_text()
    assert len(picture_uris(page)) == 1
    assert page.count("picture cannot be read") == 2 and page.count("picture missing") == 2
    assert caplog.text.count("cannot be shown (") == 2


def test_names_of_files():
    assert all(map(is_inside, ("a.png", "panels/a.png", "..a/b..png", "a/./b")))
    assert not any(map(is_inside, ("../a", "/a", "a/..", "..", "", "a\\b", "a\0", None, 3, ["a"])))


def test_every_value_of_a_run_is_escaped(run):
    """Names and texts anywhere; what is not of its kind is left out."""
    fields = ("name", "command", "started", "finished", "world_size", "seconds")
    for field in fields:
        (run / "run.json").write_text(json.dumps({"name": "n", field: EVIL}))
        assert only_our_scripts(write_report(run))
    (run / "run.json").write_text(json.dumps({"name": EVIL, "command": EVIL, "versions": {EVIL: EVIL}, "world_size": 2}))
    (run / "recipe.yaml").write_text(EVIL)
    (run / "plan.txt").write_text(EVIL)
    names = (f"loss/{EVIL}", EVIL, f"rows/{EVIL}/wanted", f"rows/{EVIL}", f"attention/{EVIL}/layer_00", "loss/$\\evil$")
    lines = [{"step": step, **dict.fromkeys(names, value)} for step, value in ((1, 1.0), (2, 2.0), (3, 2.0))]
    constant = [{"step": 1, f"{EVIL}/c": 1}, {"step": 2, f"{EVIL}/c": 1}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines + constant))
    quarantine = {"step": 1, "stream": EVIL, "shard": EVIL, "key": EVIL, "reason": EVIL}
    (run / "quarantine.jsonl").write_text(json.dumps(quarantine) + "\n")
    write_panels(run, "panels/a.png", "panels/missing.png", text=EVIL)
    asked = {"image": "a.png", "question": EVIL, "answer": EVIL, "predicted": EVIL, "correct": True}
    drawn = {"file": "a.png", "caption": EVIL, "row": EVIL, "column": EVIL}
    suite = {"metrics": {EVIL: 1.0}, "pictures": [drawn], "questions": [asked]}
    tables = [{"title": EVIL, "columns": [EVIL], "rows": [[EVIL]] * rows} for rows in (1, 30)]
    (run / "evaluation" / "step-00000000").mkdir(parents=True)
    for step in (0, 1):
        file = run / "evaluation" / f"step-{step:08d}.json"
        file.write_text(json.dumps({"step": step, "suites": {EVIL: {**suite, "tables": tables}}}))
    page = only_our_scripts(write_report(run))
    assert page.count("&lt;script") > 30 and page.count("\\u003cscript") == 5
    assert '"&gt;<' not in page.replace('alt="', ""), "nothing ends an attribute"


def test_texts_that_are_not_unicode(run):
    """Half of a surrogate pair, which JSON can hold and UTF-8 cannot; controls of a terminal."""
    odd = "a\ud800\x1b[2J"
    (run / "run.json").write_text(json.dumps({"name": odd, "command": odd}))
    write_panels(run, "panels/a.png", text=odd)
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, f"loss/{odd}": 1.0}) + "\n")
    assert len(picture_uris(write_report(run).read_text(encoding="utf-8"))) == 1
    assert list(read_run_folder(run).series) == ["loss/a\ufffd\ufffd[2J"]


def test_numbers_that_no_plot_holds(run):
    big = [float("nan"), float("inf"), 10**400, True, "1", [1]]
    with open(run / "metrics.jsonl", "w") as file:
        for step in (1, 2, -1, 2**60, 1.5, True):
            file.write(json.dumps({"step": step, "loss/a": 1.0, **{f"loss/{n}": value for n, value in enumerate(big)}}) + "\n")
    assert read_run_folder(run).series == {"loss/a": ([1, 2], [1.0, 1.0])}
    assert write_report(run).is_file()


def test_equal_pictures_have_infinitely_many_decibels(run):
    """What a suite may measure is shown; a plot leaves it out."""
    layers = {f"understand/layer_{n:02d}": value for n, value in enumerate([0.1, float("inf"), None])}
    metrics = {"psnr": float("inf"), "none": None, **layers}
    table = {"title": "T", "columns": ["picture", "PSNR (dB)"], "rows": [["a", float("inf")], ["b", float("nan")], ["c", None]]}
    suite = {"metrics": metrics, "tables": [table], "pictures": [], "questions": []}
    (run / "evaluation").mkdir()
    (run / "evaluation" / "step-00000001.json").write_text(json.dumps({"step": 1, "suites": {"s": suite}}))
    page = write_report(run).read_text()
    assert '<td class="number">inf</td>' in page and '<td class="number">nan</td>' in page and "attention by layer" in page


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["run.json", "panels/step-00000001.json", "evaluation/step-00000300.json"])
def test_any_change_of_a_file_of_a_run_leaves_a_report(whole, name):
    """Values replaced or removed at random: the report is written, or the file is left out."""
    file = whole / name
    before = file.read_text()
    inputs = changed(json.loads(before)) | values()

    @settings(max_examples=40, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(inputs)
    def each(content: object) -> None:
        file.write_text(json.dumps(content))
        began = time.process_time()
        assert write_report(whole).is_file() and time.process_time() - began < 5

    try:
        each()
    finally:
        file.write_text(before)
    assert len(picture_uris(write_report(whole).read_text())) > 5


def test_a_secret_would_be_seen_by_these_tests(run):
    """The same picture, inside of the folder, is shown."""
    shutil.copyfile(run.parent / "secret.png", run / "panels" / "a.png")
    write_panels(run, "panels/a.png")
    (uri,) = picture_uris(write_report(run).read_text())
    assert base64.b64decode(uri.partition(",")[2])[:4] == b"\x89PNG"
