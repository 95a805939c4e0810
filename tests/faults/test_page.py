"""docs/reliability.md names every test that shows a fault, and none that is gone."""

from __future__ import annotations

import json

import pytest

from tests.faults.marks import REPOSITORY, MarkedTest, MarkError, marked_tests
from tests.faults.write_page import BEGIN, END, PAGE, kind_of, named_tests, table, what_was_seen, with_table

AGAIN = "Type `make test-faults` (it writes the table), or `python -m tests.faults.write_page FILE` with its results."
ONE = MarkedTest("tests/a/test_b.py::test_c", "rank killed", "ends", "")


def test_the_page_has_every_marked_test_and_no_other():
    named, marked = named_tests(PAGE.read_text(encoding="utf-8")), [test.test for test in marked_tests()]
    assert sorted(marked) == sorted(named), f"{set(marked) ^ set(named)}. {AGAIN}"


def test_the_page_says_of_every_fault_what_its_mark_says():
    text = PAGE.read_text(encoding="utf-8")
    missing = [test.test for test in marked_tests() if f"| {test.what.replace('|', chr(92) + '|')} | {test.does}" not in text]
    assert missing == [], AGAIN


def write(folder, decorator, body="def test_it(): pass"):
    (folder / "test_x.py").write_text(f"import pytest\n\n{decorator}\n{body}\n")
    return marked_tests(folder)


def test_marks_are_read_from_the_source(tmp_path):
    [test] = write(tmp_path, '@pytest.mark.fault("a" " b", does="c", lost="d")')
    assert test == MarkedTest("test_x.py::test_it", "a b", "c", "d")
    [test] = write(tmp_path, 'WHAT = "a"\n@pytest.mark.fault(WHAT, does="c", lost="d")')
    assert test.what == "a"
    [test] = write(tmp_path, "class TestAll:", '    @pytest.mark.fault("a", "b", "c")\n    def test_it(self): pass')
    assert test.test == "test_x.py::TestAll::test_it"


@pytest.mark.parametrize(
    ("decorator", "body", "problem"),
    [
        ('@pytest.mark.fault("a", does="b")', "def test_it(): pass", "it needs what, does, lost"),
        ('@pytest.mark.fault(WHAT, does="b", lost="")', "def test_it(): pass", "plain strings"),
        ('@pytest.mark.fault("a", does="", lost="")', "def test_it(): pass", "must be text"),
        ('X = pytest.mark.fault("a", does="b", lost="")', "def test_it(): pass", "1 marks `fault`, but 0 of them stand"),
    ],
)
def test_marks_that_the_table_cannot_show_are_an_error(tmp_path, decorator, body, problem):
    with pytest.raises(MarkError, match=problem):
        write(tmp_path, decorator, body)


def test_a_row_says_what_was_measured_over_all_cases():
    passed = {"outcome": "passed", "seconds": 1.25, "measured": [["survivors ended after", 2.0, "s"]]}
    slower = {**passed, "measured": [["survivors ended after", 3.0, "s"], ["rounds", 7.0, ""]]}
    written = table([ONE], {f"{ONE.test}[a]": passed, f"{ONE.test}[b]": slower, f"{ONE.test}_d": passed})
    assert "### A rank is lost" in written
    assert f"| rank killed | ends | nothing | `{ONE.test}` | 2 cases; survivors ended after 3 s; rounds 7; 2.5 s |" in written
    assert what_was_seen([]) == "not run"
    assert what_was_seen([{**passed, "measured": [], "outcome": "skipped"}]) == "skipped; 1.2 s"


def test_only_what_stands_between_the_marks_is_replaced():
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    fresh = with_table(text, table([ONE], {}))
    assert fresh.startswith("before\n") and fresh.endswith("after\n") and "old" not in fresh
    assert named_tests(fresh) == [ONE.test] and named_tests(text) == []
    with pytest.raises(ValueError, match="has no lines"):
        with_table("nothing", "")


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("signal on one rank", "Signals and preemption"),
        ("disk full in a save", "The disk"),
        ("a pickle in a checkpoint", "Hostile input"),
        ("gradient not finite", "Divergence"),
        ("rank killed", "A rank is lost, stops, or is slow"),
        ("the link between two nodes is cut", "A node or its network is lost"),
        ("unheard-of", "Other faults"),
    ],
)
def test_faults_are_sorted_by_kind(what, kind):
    assert kind_of(MarkedTest("tests/x/test_y.py::test_z", what, "", "")) == kind


RECORDED = """
import pytest
pytest_plugins = ["tests.faults.recording"]

@pytest.mark.fault("a", does="b", lost="c")
@pytest.mark.parametrize("n", [1, 2, 3])
def test_one(measured, n):
    measured("tries", n, "x")
    if n == 3:
        pytest.skip("not here")
    assert n == 1

def test_other():
    pass
"""


def test_results_are_recorded(pytestconfig, tmp_path, monkeypatch):
    """In a separate pytest, in this process."""
    (tmp_path / "test_recorded.py").write_text(RECORDED)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "results.json"
    options = ["-q", "-p", "no:cacheprovider", "-p", "tests.faults.recording", "-c", "/dev/null", f"--rootdir={tmp_path}"]
    pytest.main([*options, "--fault-results", str(file), "test_recorded.py"])
    results = json.loads(file.read_text())
    assert [(name.split("::")[1], r["outcome"], r["measured"]) for name, r in results.items()] == [
        ("test_one[1]", "passed", [["tries", 1.0, "x"]]),
        ("test_one[2]", "failed", [["tries", 2.0, "x"]]),
        ("test_one[3]", "skipped", [["tries", 3.0, "x"]]),
    ]


def test_the_results_of_an_earlier_run_do_not_hide_the_option():
    """`--fault-results FILE` would make an existing FILE an argument of pytest, which then reads no conftest.py of tests."""
    assert "--fault-results=$(FAULT_RESULTS)" in (REPOSITORY / "Makefile").read_text()
