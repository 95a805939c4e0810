"""The list of mutants does not rot: each can be planted today, and the tests that must notice it exist."""

from __future__ import annotations

import ast
import dataclasses

import pytest

from tests.mutants.__main__ import chosen, main, options
from tests.mutants.judging import Judge
from tests.mutants.listed import REPOSITORY, ListError, Mutant, check_tests, listed, rooms
from tests.mutants.trees import Tree
from tests.mutants.verdicts import BROKEN, NOTICED, SURVIVED, TIMEOUT, VERDICTS, Verdict, Verdicts, fingerprint
from tests.mutants.write_page import BEGIN, END, PAGE, table, with_table

FEWEST = 200


def mutant(**changed) -> Mutant:
    given = {"room": "a", "id": "b", "file": "data_prep/notes.py", "old": "x", "new": "y", "breaks": "c", "tests": ("d",)}
    return Mutant(**{**given, **changed})


@pytest.mark.parametrize("room", rooms())
def test_every_mutant_can_be_planted_and_its_tests_exist(room):
    mutants = listed(room)
    for each in mutants:
        changed = each.applied_to((REPOSITORY / each.file).read_text(encoding="utf-8"))
        if each.file.endswith(".py"):
            ast.parse(changed)  # a fault that no test need run to notice is none
    check_tests(mutants)


def test_there_are_enough_and_no_two_are_the_same():
    changes = [(each.file, each.old, each.new) for each in listed()]
    assert len(changes) >= FEWEST and len(set(changes)) == len(changes)


def test_old_text_that_is_gone_or_ambiguous_is_named():
    for text, times in (("nothing", 0), ("x x", 2)):
        with pytest.raises(ListError, match=f"a/b: its old text is in data_prep/notes.py {times} times.*rooms/a.toml"):
            mutant().applied_to(text)
    assert mutant().applied_to("a x b") == "a y b"


@pytest.mark.parametrize(
    ("test", "problem"),
    [
        ("tests/no_such.py", "there is no such file"),
        ("tests/mutants/test_list.py::test_no_such", "has no test test_no_such"),
        ("ranks: gradients full", "legal is"),
        ("ranks: no_such 2 full", "there is no tests/multi_process/no_such.py"),
        ("ranks: gradients 2 no_such_case", "gradients has no case no_such_case"),
    ],
)
def test_tests_that_are_not_there_are_named(test, problem):
    with pytest.raises(ListError, match=f"a/b names .*{problem}.*rooms/a.toml"):
        check_tests([mutant(tests=(test,))])
    check_tests(
        [mutant(tests=("tests/mutants/test_list.py::test_tests_that_are_not_there_are_named[x]", "ranks: gradients 2 full"))]
    )


@pytest.mark.parametrize(
    "entry", ['id = "a"\nold = "b"', 'id = "a"\nfile = "f"\nold = "b"\nnew = "b"\nbreaks = "c"\ntests = ["d"]']
)
def test_entries_that_are_not_mutants_are_named(tmp_path, entry):
    (tmp_path / "room.toml").write_text(f"[[mutant]]\n{entry}\n")
    with pytest.raises(ListError, match="room.toml: a"):
        listed(folder=tmp_path)


def test_a_sample_is_that_of_its_seed():
    draws = [[m.name for m in chosen(options(["--sample", "9", "--seed", seed]))] for seed in ("3", "3", "4")]
    assert draws[0] == draws[1] != draws[2] and len(set(draws[0])) == 9


def test_a_tree_has_the_mutant_inside_the_block_alone_and_the_repository_never(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.mutants.trees.repository_files", lambda: ["data_prep/notes.py"])
    tree, planted = Tree(tmp_path / "tree"), listed("step")[0]
    planted = mutant(old=(REPOSITORY / "data_prep/notes.py").read_text(encoding="utf-8"), new="pass")
    with tree.with_mutant(planted):
        assert (tree.folder / planted.file).read_text() == "pass" != (REPOSITORY / planted.file).read_text()
    assert (tree.folder / planted.file).read_bytes() == (REPOSITORY / planted.file).read_bytes()


def test_a_verdict_is_kept_until_mutant_file_or_tests_change(tmp_path):
    first, second = listed("step")[:2]
    verdicts = Verdicts(tmp_path / "verdicts.json")
    assert verdicts.of(first) is None
    verdicts.add(second, Verdict(SURVIVED, 1.5, "", fingerprint(second)))
    verdicts.add(first, Verdict(NOTICED, 1.0, first.tests[0], fingerprint(first)))
    again = Verdicts(tmp_path / "verdicts.json")
    assert again.of(first) == Verdict(NOTICED, 1.0, first.tests[0], fingerprint(first)) and again.of(listed("step")[2]) is None
    lines = (tmp_path / "verdicts.json").read_text().splitlines()
    assert [line.split('"')[1] for line in lines[1:-1]] == sorted([first.name, second.name]), "a line for each, sorted"
    again.add(first, Verdict(NOTICED, 1.0, "", "of other files"))
    assert again.of(first) is None and again.of(second) is not None


def test_verdicts_of_two_processes_are_put_together(tmp_path):
    """One that counts no more does not take the place of one that does."""
    first, second = listed("step")[:2]
    ours, theirs = Verdicts(tmp_path / "ours.json"), Verdicts(tmp_path / "theirs.json")
    ours.add(first, Verdict(NOTICED, 1.0, "", fingerprint(first)))
    theirs.add(first, Verdict(SURVIVED, 2.0, "", "of other files"))
    theirs.add(second, Verdict(SURVIVED, 3.0, "", fingerprint(second)))
    code = main(["--room", "step", "--results", str(ours.file), "--no-page", "--merge", str(theirs.file)])
    found = Verdicts(ours.file)
    assert [found.of(each).outcome for each in (first, second)] == [NOTICED, SURVIVED] and code == 1
    found.keep({second.name})
    assert list(Verdicts(ours.file).of_name) == [second.name]


def test_the_verdicts_of_the_repository_are_about_mutants_of_the_list():
    verdicts = Verdicts(VERDICTS).of_name
    gone = set(verdicts) - {each.name for each in listed() if not each.equivalent}
    assert not gone, f"python -m tests.mutants --merge drops them from {VERDICTS.name}"
    assert {verdict.outcome for verdict in verdicts.values()} <= {NOTICED, SURVIVED, TIMEOUT, BROKEN}


def test_tests_that_fail_without_a_mutant_notice_nothing(tmp_path, monkeypatch):
    """pytest fails with or without the mutant: the verdict says broken, not noticed."""
    codes = iter([1, 1, 1, 0])
    monkeypatch.setattr(
        "tests.mutants.judging.run_tests", lambda tree, tests, log, limit: (log.write_text(""), (next(codes), 0.1))[1]
    )
    monkeypatch.setattr(
        "tests.mutants.trees.repository_files", lambda: ["megaunigame/randomness.py", "tests/test_randomness.py"]
    )
    first = listed("step")[0]
    assert Judge(Tree(tmp_path / "a"), tmp_path / "logs").judge(first).outcome == BROKEN
    assert Judge(Tree(tmp_path / "b"), tmp_path / "logs").judge(first).outcome == NOTICED


def test_the_case_that_failed_is_run_again_without_the_mutant_and_no_other(tmp_path, monkeypatch):
    """Cases have names with spaces, which what pytest says does not tell from its message."""
    asked = []

    def run(tree, tests, log, limit):
        asked.append(tests)
        log.write_text("FAILED tests/test_randomness.py::test_a[one two] - assert 1\n")
        return (1 if len(asked) == 1 else 0), 0.1

    monkeypatch.setattr("tests.mutants.judging.run_tests", run)
    monkeypatch.setattr(
        "tests.mutants.trees.repository_files", lambda: ["megaunigame/randomness.py", "tests/test_randomness.py"]
    )
    case, other = "tests/test_randomness.py::test_a[one two]", "tests/test_randomness.py::test_b"
    named = dataclasses.replace(listed("step")[0], tests=(other, case))
    verdict = Judge(Tree(tmp_path / "a"), tmp_path / "logs").judge(named)
    assert asked == [[other, case], [case]] and (verdict.outcome, verdict.by) == (NOTICED, case.split("[")[0])


def test_the_table_counts_and_names_what_was_not_noticed(tmp_path):
    first, second, *_ = listed("step")
    verdicts = Verdicts(tmp_path / "verdicts.json")
    verdicts.add(first, Verdict(NOTICED, 1.0, "", fingerprint(first)))
    verdicts.add(second, Verdict(SURVIVED, 1.0, "", fingerprint(second)))
    third = mutant(room="step", id="same", tests=(), equivalent="nothing | changes")
    written = table([first, second, third], verdicts)
    assert "| step | 2 | 1 | 1 | 0 | 1 |" in written and second.breaks in written and first.breaks not in written
    assert "nothing \\| changes" in written


def test_the_page_has_a_table_and_only_it_is_replaced():
    text = PAGE.read_text(encoding="utf-8")
    assert "| all |" in text.partition(BEGIN)[2].partition(END)[0]
    fresh = with_table(text, "new")
    assert fresh.partition(BEGIN)[0] == text.partition(BEGIN)[0] and fresh.partition(END)[2] == text.partition(END)[2]
    with pytest.raises(ValueError, match="has no lines"):
        with_table("nothing", "new")
