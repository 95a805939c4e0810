"""docs/guarantees.md: each guarantee has a mutant that breaks it, and names a test that must notice."""

from __future__ import annotations

import re
from pathlib import Path

from tests.mutants.listed import check_tests, listed

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guarantees.md"
ROW = re.compile(r"^\| (\d+|README) \| ([^|]+) \| `([^`]+)` \| `([^`]+)` \|$", re.MULTILINE)
GUARANTEE = re.compile(r"^(\d+)\. ", re.MULTILINE)
APART = {"11", "12"}
"""Their tests are not part of `make test`: numbers of the official code, and network namespaces."""


def test_every_guarantee_has_a_mutant_that_its_test_must_notice():
    text = PAGE.read_text(encoding="utf-8")
    known = {mutant.name: mutant for mutant in listed()}
    table = text.partition("## A fault that breaks each")[2].partition("\n## ")[0]
    rows = ROW.findall(table)
    assert len(rows) == len([line for line in table.splitlines() if line.startswith("| ")]) - 1, "a row of another form"
    for guarantee, part, test, name in rows:
        place = f"{PAGE.name}: {guarantee}, {part.strip()}"
        assert name in known, f"{place}: there is no mutant {name}"
        assert test in known[name].tests, f"{place}: {name} is for other tests: {', '.join(known[name].tests)}"
        assert not known[name].equivalent
    check_tests(known[name] for *_, name in rows)
    assert {row[0] for row in rows} == set(GUARANTEE.findall(text)) - APART | {"README"}
    assert len({row[1] for row in rows}) == len(rows)
