from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from megaunigame.errors import DataError
from megaunigame.monitoring import page
from megaunigame.monitoring.comparison import compared_table
from megaunigame.monitoring.history import read_run_folder
from megaunigame.monitoring.report import loss_text, write_report
from tests.monitoring.runs import write_evaluation, write_metrics, write_run

VOID = {"meta", "img", "br"}


class Tags(HTMLParser):
    """Checks that tags close in order; collects text and links."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attributes):
        assert not [name for name, _ in attributes if name.startswith("on")], "handlers in the HTML would not run"
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(path) -> Tags:
    tags = Tags()
    tags.feed(path.read_text())
    assert tags.open == []
    return tags


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report(write_run(tmp_path_factory.mktemp("alone") / "run"))


def charts(path) -> dict:
    """What the script of a report draws."""
    return json.loads(re.search(r'<script type="application/json" id="curves">(.*?)</script>', path.read_text()).group(1))


def test_the_page_is_whole_and_fetches_nothing(report):
    tags, html = parsed(report), report.read_text()
    pictures = [link for link in tags.links if link.startswith("data:")]
    # Three pictures asked about, three rows of drawn ones. Curves are not pictures.
    assert len(pictures) == 3 + 3 * 4 and all(link.startswith("data:image/png;base64,") for link in pictures)
    inside = [link for link in tags.links if link not in pictures]
    assert inside and all(link.startswith("#") and f'<section id="{link[1:]}">' in html for link in inside)
    assert not re.search(r"(https?:)?//\w", re.sub(r'src="[^"]*"', "", html))


def test_the_browser_runs_the_script_of_the_report_alone(report):
    html = report.read_text()
    *_, script = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    named = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{named}'" in html
    assert html.count("<script") == 2


def test_the_contents_name_every_section(report):
    html = report.read_text()
    entries = re.findall(r'<li><a href="#([^"]+)">([^<]+)</a></li>', html)
    assert entries == re.findall(r'<section id="([^"]+)"><h2>([^<]+)</h2>', html) and len(set(dict(entries))) == len(entries)
    assert [title for _, title in entries] == [
        *("Losses", "Optimization", "Throughput", "Data", "Evaluation: val", "Evaluation: draw")
    ]


def test_curves_have_their_points_units_and_meanings(report):
    drawn = charts(report)
    by_title = {chart["title"]: chart for chart in drawn["charts"]}
    losses = by_title["Losses of the terms"]
    assert [one["name"] for one in losses["series"]] == ["loss/understanding", "loss/caption", "loss/pixel", "loss/total"]
    total = losses["series"][3]
    assert len(drawn["steps"][total["x"]]) == len(total["y"]) == 299 and 17 not in drawn["steps"][total["x"]]
    memory = by_title["perf/peak_memory_bytes"]
    assert memory["unit"] == "GiB" and 2.7 < memory["series"][0]["y"][0] < 3 and "rank with the most" in memory["about"]
    assert by_title["perf/mfu"]["unit"] == "%" and 30 < by_title["perf/mfu"]["series"][0]["y"][0] < 36
    assert len(by_title["Tokens per second"]["series"]) == 2
    assert report.read_text().count('<figure class="chart') == len(drawn["charts"])
    assert drawn["marks"] == []


def test_a_long_run_has_a_bounded_number_of_points(tmp_path):
    lines = ({"step": step, "loss/total": 2.0 * step} for step in range(1, 4002))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    drawn = charts(write_report(tmp_path))
    [chart] = drawn["charts"]
    [one] = chart["series"]
    assert chart["each"] == 3 and len(one["y"]) == 1334
    assert one["y"][:2] == [4.0, 10.0] and one["y"][-1] == 2.0 * 4000.5 and drawn["steps"][0][:2] == [3, 6]
    assert drawn["steps"][0][-1] == 4001


def test_launches_are_listed_and_marked_in_the_curves(tmp_path):
    """Line n of the metrics was written 1000 + n seconds after 1970."""
    folder = write_run(tmp_path / "run")
    run = json.loads((folder / "run.json").read_text())
    began = ["1970-01-01T00:16:00+00:00", "1970-01-01T00:17:30+00:00", "1970-01-01T00:17:31+00:00", "1970-01-01T02:00:00+00:00"]
    (folder / "run.json").write_text(json.dumps({**run, "launches": began}))
    page = write_report(folder)
    rows = re.findall(r"<tr><td class=\"number\">(\d)</td><td>(1970[^<]*)</td>(.*?)</tr>", page.read_text())
    found = [(number, *re.findall(r">([^<>]+)</td>", cells)[:3]) for number, _, cells in rows]
    assert found == [("1", "1", "49", "49"), ("2", "50", "50", "1"), ("3", "51", "300", "250"), ("4", "–", "–", "0")]
    text = " ".join(parsed(page).text)
    assert "5 min 38 s" in text, "until the last step of each: 1049 - 960, 1050 - 1050 and 1300 - 1051 seconds"
    assert charts(page)["marks"] == [
        {"step": 50, "text": "launch 2 begins here"},
        {"step": 51, "text": "launch 3 begins here"},
    ]


def test_results_of_many_evaluations_are_a_curve(tmp_path):
    folder = write_run(tmp_path / "run")
    with open(folder / "metrics.jsonl", "a") as file:
        for step in (0, 100, 300):
            file.write(json.dumps({"step": step, "evaluation/val/a/b": 0.1, "evaluation/val/accuracy/mean": step / 300}) + "\n")
            file.write(json.dumps({"step": step, "evaluation/draw/x": 1.0}) + "\n" if step else "")
    page = write_report(folder)
    [chart] = [chart for chart in charts(page)["charts"] if chart["title"] == "Results by step"]
    assert [one["name"] for one in chart["series"]] == ["evaluation/val/accuracy/mean", "evaluation/val/a/b"]
    assert chart["series"][0]["y"] == [0.0, 0.33333, 1.0] and chart["series"][0]["exact"]


def test_every_column_of_a_table_is_explained(report):
    html = report.read_text()
    heads = re.findall(r"<th[^>]*>[^<]*</th>", html)
    assert heads and not [head for head in heads if "title=" not in head]
    assert "<dt>accuracy (%), before; accuracy (%), after</dt><dd>Answers that are right.</dd>" in html


def test_a_suite_may_explain_its_columns():
    table = {"title": "t", "columns": ["kind", "odd %"], "rows": [["a", 1.0]], "about": {"odd %": "Share <of> oddness."}}
    html = compared_table({**table, "rows": [["a", 2.0]]}, table)
    assert html.count('title="Share &lt;of&gt; oddness."') == 2 and "<dt>odd %, before; odd %, after</dt>" in html


def test_pictures_are_shown_at_their_size(tmp_path):
    for width, height in ((64, 48), (200, 100), (384, 384), (1500, 750)):
        Image.new("RGB", (width, height), "red").save(tmp_path / f"{width}.png")
    found = {}
    for width in (64, 200, 384, 1500):
        html = page.picture(tmp_path, f"{width}.png", "it")
        uri = re.search('src="data:image/(png|jpeg);base64,([^"]+)"', html)
        inside = Image.open(io.BytesIO(base64.b64decode(uri[2]))).size
        found[width] = (int(re.search(r'width="(\d+)"', html)[1]), uri[1], inside, "data-enlarged" in html)
        assert html.startswith('<button class="enlarge"') and "data-size=" in html
    assert found == {
        64: (128, "png", (64, 48), True),
        200: (200, "png", (200, 100), False),
        384: (384, "png", (384, 384), False),
        1500: (384, "jpeg", (1024, 512), False),
    }


def test_header_and_summary(report):
    text = " ".join(parsed(report).text)
    for wanted in (
        *("tiny_sft <demo>", "started 2026-01-05 10:00 UTC", "2 ranks", "deepspeed --num_gpus 2", "torch 2.14.1"),
        *("<8 rows>", "2,050,000"),
    ):
        assert wanted in text
    assert "300" in text and "4 min 10 s" in text and "rows/s, median" in text and "loss/caption, first → last" in text
    tokens = 300 * 0.88 * 3860  # seconds of a step, and tokens in a second
    assert "largest memory of a rank" in text and "2.8 GiB" in text and re.search(r"1\.\d M", text) and 0.9e6 < tokens < 1.1e6
    assert "Constant: perf/passes = 2" in text and "Constant: data/bad_samples = 0" in text


def test_answers_before_and_after_are_colored(report):
    html = report.read_text()
    row = re.search(r"<tr><td>what color is the cube 0 \?</td>.*?</tr>", html).group()
    assert '<td>red</td><td><span class="bad">✗ purple</span></td><td><span class="good">✓ red</span></td>' in row


def test_accuracy_stands_next_to_chance_and_majority(report):
    html = report.read_text()
    head = re.search(r"<tr><th[^>]*>kind</th>.*?</tr>", html).group()
    assert re.findall(r">([^<>]+)</th>", head) == [
        *("kind", "questions", "accuracy (%), before", "accuracy (%), after", "chance (%)", "majority (%)")
    ]
    row = re.search(r"<tr><td>color</td>.*?</tr>", html).group()
    assert re.findall(r">([^<>]+)</td>", row) == ["color", "310", "21.0", "94.2", "37.4", "38.4"]


def test_only_pictures_that_changed_appear_twice(report):
    heads = re.findall(r"<th[^>]*>([^<]*)</th>", report.read_text())
    assert {"source", "through tokenizer", "generated, before", "generated, after"} <= set(heads)
    assert "source, before" not in heads


def test_small_losses_do_not_read_as_zero():
    assert [loss_text([value]) for value in (2.5, 0.25, 0.0412, 0.0004, 0.0)] == ["2.500", "0.250", "0.0412", "0.0004", "0.000"]


@pytest.mark.parametrize("missing", ["recipe.yaml", "plan.txt", "run.json", "metrics.jsonl", "evaluation"])
def test_any_part_may_be_missing(tmp_path, missing):
    folder = write_run(tmp_path / "run")
    (folder / missing).rename(tmp_path / "elsewhere")
    text = " ".join(parsed(write_report(folder)).text)
    assert ("was not evaluated" in text) == (missing == "evaluation")
    assert ("tiny_sft <demo>" in text) == (missing != "run.json")


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path):
    text = " ".join(parsed(write_report(tmp_path)).text)
    assert "has not logged a step" in text and "was not evaluated" in text


def test_a_run_that_was_killed(tmp_path):
    folder = write_run(tmp_path / "run")
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**run, "finished": None, "seconds": 0.0}))
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 301, "loss/to')
    assert "not finished" in " ".join(parsed(write_report(folder)).text)


def test_one_evaluation_has_no_before(tmp_path):
    write_metrics(tmp_path)
    write_evaluation(tmp_path, 300, trained=True)
    heads = re.findall(r"<th[^>]*>([^<]*)</th>", write_report(tmp_path).read_text())
    assert "predicted" in heads and "accuracy (%)" in heads and not any("before" in head for head in heads)


def test_a_picture_that_is_gone(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "evaluation" / "step-00000300" / "draw" / "0001-generated.png").unlink()
    assert "picture missing" in write_report(folder).read_text()


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match="No run folder at .*nowhere"):
        write_report(tmp_path / "nowhere")


def test_history_leaves_out_what_is_not_finite(tmp_path):
    write_metrics(tmp_path)
    series = read_run_folder(tmp_path).series
    assert 17 not in series["loss/total"][0] and len(series["loss/total"][0]) == 299
    assert len(series["loss/caption"][0]) == 300


def test_rows_that_are_new_have_no_before():
    columns = ["kind", "accuracy (%)"]
    before = {"title": "t", "columns": columns, "rows": [["a", 10.0]]}
    after = {"title": "t", "columns": columns, "rows": [["a", 20.0], ["b", None]]}
    assert re.findall(r">([^<>]+)</td>", compared_table(before, after)) == ["a", "10.0", "20.0", "b", "–", "–"]


def test_no_section_takes_the_name_of_the_data_of_the_curves():
    """Metrics of a plugin, or of a hostile run, may be called `curves/...`, and their section after them."""
    titles = ["Curves", "Enlarged", "a-2", "a", "a", ""]
    html = page.page("run", "", [page.Section(title, "") for title in titles])
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids)) and {"curves", "enlarged"} < set(ids)
    assert re.findall(r'href="#([^"]*)"', html) == re.findall(r'<section id="([^"]*)"', html)
