"""The tests marked `fault`, read from the syntax trees of the test files: what, does, lost. No test is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
REPOSITORY = TESTS.parent
FIELDS = ("what", "does", "lost")


class MarkError(ValueError):
    """A mark that the table cannot show."""


@dataclass(frozen=True)
class MarkedTest:
    """A row of the table."""

    test: str
    """`tests/folder/test_file.py::test_name`"""
    what: str
    does: str
    lost: str


def marked_tests(folder: Path = TESTS) -> list[MarkedTest]:
    """Of all test files below `folder`, in the order of files and lines. Raises MarkError for a mark that is not a decorator
    of a test with plain strings, or names of those."""
    return [test for file in sorted(folder.rglob("test_*.py")) for test in _marked_in(file)]


def _marked_in(file: Path) -> Iterator[MarkedTest]:
    text = file.read_text(encoding="utf-8")
    if "mark.fault(" not in text:
        return
    tree = ast.parse(text)
    name = file.relative_to(REPOSITORY).as_posix() if file.is_relative_to(REPOSITORY) else file.name
    found, strings = 0, _strings(tree)
    for parent in ast.walk(tree):
        for test in ast.iter_child_nodes(parent):
            if not isinstance(test, ast.FunctionDef) or not test.name.startswith("test"):
                continue
            owner = f"{parent.name}::" if isinstance(parent, ast.ClassDef) else ""
            for mark in filter(_is_mark, test.decorator_list):
                found += 1
                yield MarkedTest(f"{name}::{owner}{test.name}", **_fields(mark, strings, f"{name}:{mark.lineno}"))
    marks = sum(map(_is_mark, ast.walk(tree)))
    if marks != found:
        raise MarkError(f"{name}: {marks} marks `fault`, but {found} of them stand right above a test.")


def _is_mark(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault"


def _strings(tree: ast.Module) -> dict[str, str]:
    """The module's own constants that are plain strings."""
    values = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
            for target in statement.targets:
                if isinstance(target, ast.Name) and isinstance(statement.value.value, str):
                    values[target.id] = statement.value.value
    return values


def _fields(mark: ast.AST, strings: dict[str, str], where: str) -> dict[str, str]:
    assert isinstance(mark, ast.Call)
    given = dict(zip(FIELDS, mark.args, strict=False)) | {k.arg or "**": k.value for k in mark.keywords}
    if set(given) != set(FIELDS):
        raise MarkError(f"{where}: a mark `fault` has {', '.join(given)}; it needs {', '.join(FIELDS)}.")
    try:
        values = {name: strings.get(ast.unparse(value)) or ast.literal_eval(value) for name, value in given.items()}
    except ValueError as error:
        raise MarkError(f"{where}: what a mark `fault` says must be plain strings.") from error
    wrong = [name for name, value in values.items() if not isinstance(value, str)]
    if wrong or not values["what"] or not values["does"]:
        raise MarkError(f"{where}: {', '.join(wrong) or 'what and does'} of a mark `fault` must be text.")
    return values
