"""What tables and curves of the report explain."""

from __future__ import annotations

import ast
from pathlib import Path

from megaunigame.monitoring import legends, names

SUITES = Path(__file__).resolve().parents[2] / "megaunigame" / "evaluation"


def columns_in(tree: ast.Module) -> set[str]:
    """Constant names in lists called `columns` and in lists given to `table`."""
    lists = [
        node.value for node in ast.walk(tree) if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "columns"
    ]
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "table"]
    lists += [call.args[1] for call in calls if isinstance(call.args[1], ast.List)]
    strings = (node for one in lists if isinstance(one, ast.List) for node in ast.walk(one) if isinstance(node, ast.Constant))
    in_forms = {id(part) for one in lists for form in ast.walk(one) if isinstance(form, ast.JoinedStr) for part in form.values}
    return {node.value for node in strings if isinstance(node.value, str) and id(node) not in in_forms}


def test_every_column_of_the_suites_is_explained():
    found = {name for file in SUITES.rglob("*.py") for name in columns_in(ast.parse(file.read_text()))}
    assert len(found) > 20
    assert sorted(name for name in found if not legends.of_column(name)) == []


def test_every_metric_of_every_run_is_explained():
    every = {value for name, value in vars(names).items() if name.startswith(("PERF_", "OPTIM_", "DATA_"))}
    assert len(every) > 12 and sorted(name for name in every if not legends.of_metric(name)) == []


def test_columns_shown_twice_and_made_names():
    assert legends.of_column("accuracy (%), before") == legends.of_column("accuracy (%)") != ""
    assert "enlarged" in legends.of_column("difference x 10") and "target" in legends.of_column("depth drawn, after")
    assert legends.of_column("nobody knows") == "" == legends.of_metric("nobody/knows")
    assert "Mean loss" in legends.of_metric("loss/depth")
