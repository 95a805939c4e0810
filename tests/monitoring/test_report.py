from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from megaunigame.errors import DataError
from megaunigame.monitoring.comparison import compared_table
from megaunigame.monitoring.history import read_run_folder
from megaunigame.monitoring.plots import smooth
from megaunigame.monitoring.report import write_report
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
    return write_report(write_run(tmp_path_factory.mktemp("run")))


def test_the_page_is_whole_and_fetches_nothing(report):
    tags = parsed(report)
    assert tags.links and all(link.startswith("data:image/png;base64,") for link in tags.links)
    # Four plots (losses, optimization, throughput, data), three pictures asked about, three rows of drawn ones.
    assert len(tags.links) == 4 + 3 + 3 * 4
    assert not re.search(r"(https?:)?//\w", re.sub(r'src="[^"]*"', "", report.read_text()))


def test_header_and_summary(report):
    text = " ".join(parsed(report).text)
    for wanted in (
        *("tiny_sft <demo>", "started 2026-01-05 10:00 UTC", "2 ranks", "deepspeed --num_gpus 2", "torch 2.14.1"),
        *("<8 rows>", "2,050,000"),
    ):
        assert wanted in text
    assert "300" in text and "0:04:10" in text and "rows/s, median" in text and "loss/caption, first → last" in text
    assert "Constant: perf/passes = 2" in text and "Constant: data/bad_samples = 0" in text


def test_answers_before_and_after_are_colored(report):
    html = report.read_text()
    row = re.search(r"<tr><td>what color is the cube 0 \?</td>.*?</tr>", html).group()
    assert '<td>red</td><td><span class="bad">✗ purple</span></td><td><span class="good">✓ red</span></td>' in row


def test_accuracy_stands_next_to_chance_and_majority(report):
    html = report.read_text()
    head = re.search(r"<tr><th>kind</th>.*?</tr>", html).group()
    assert re.findall(r">([^<>]+)</th>", head) == [
        *("kind", "questions", "accuracy (%), before", "accuracy (%), after", "chance (%)", "majority (%)")
    ]
    row = re.search(r"<tr><td>color</td>.*?</tr>", html).group()
    assert re.findall(r">([^<>]+)</td>", row) == ["color", "310", "21.0", "94.2", "37.4", "38.4"]


def test_only_pictures_that_changed_appear_twice(report):
    heads = re.findall(r"<th>([^<]*)</th>", report.read_text())
    assert {"source", "through tokenizer", "generated, before", "generated, after"} <= set(heads)
    assert "source, before" not in heads


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


def test_smooth_is_a_centered_mean():
    assert smooth([1, 2, 3, 4, 5], 3).tolist() == [1.5, 2, 3, 4, 4.5]
    assert smooth([3.0], 5).tolist() == [3.0]
    np.testing.assert_allclose(smooth(list(range(100)), 9)[10:90], np.arange(10, 90))


def test_rows_that_are_new_have_no_before():
    columns = ["kind", "accuracy (%)"]
    before = {"title": "t", "columns": columns, "rows": [["a", 10.0]]}
    after = {"title": "t", "columns": columns, "rows": [["a", 20.0], ["b", None]]}
    assert re.findall(r">([^<>]+)</td>", compared_table(before, after)) == ["a", "10.0", "20.0", "b", "–", "–"]
