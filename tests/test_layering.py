"""Imports point down only, DeepSpeed stays in two rooms, and a few things never enter the source.

A room is a file or a folder of `megaunigame`, or one of the two folders next to it. `models.base`, `models.weights`,
`data.codes`, `data.decode`, `data.conversation`, `data.edits`, `monitoring.names` and `step.losses` are rooms:
they may be imported where their siblings may not. Imports are read from the syntax tree, so one inside a function counts too.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDERS = ("megaunigame", "data_prep", "launch")
LONGEST_FILE = 450

ANYTHING = {"*"}
MAY_IMPORT: dict[str, set[str]] = {
    # ground floor: no model, no data, no step
    "errors": set(),
    "randomness": set(),
    "registry": {"errors"},
    "shipped": {"errors", "registry"},
    "settings": {"errors", "registry", "shipped"},
    "config": {"pictures", "errors", "registry", "settings", "shipped"},
    "launching": {"errors", "parallel"},
    "pixels": set(),
    "parallel": {"errors"},
    "judges": {"errors", "registry", "settings"},
    "pictures": {"errors"},
    "monitoring.names": set(),
    "storage": {"errors"},
    # the vocabulary of a step
    "step": {"errors"},
    "step.losses": {"errors", "monitoring.names", "parallel", "step"},
    # first floor: each knows the step and the ground; of another only contracts (models also knows attention)
    "attention": {"errors", "parallel", "registry", "step"},
    "data.codes": {"errors", "step", "storage"},
    "data.decode": {"data.codes", "errors", "pictures", "step", "storage"},  # of step: the codes that a sample's row carries
    "data.conversation": {"data.decode", "errors", "storage"},
    "data.edits": {"data.conversation", "data.decode", "errors", "storage"},
    "data": {"config", "errors", "pictures", "randomness", "registry", "step", "storage"},
    "models.base": {"errors", "parallel", "registry", "step", "storage"},
    "models.weights": {"errors", "models.base", "registry", "storage"},
    "models": {"attention", "errors", "parallel", "registry", "step", "storage"},
    "monitoring": {"errors", "pixels", "registry", "storage"},
    "representations": {"data.decode", "errors"},
    "adversary": {"errors", "parallel", "settings"},
    "replay": {"errors", "models.base", "parallel", "pixels", "step", "storage"},
    # second floor: what a run is made of
    "objectives": {
        *("adversary", "attention", "config", "data.conversation", "data.decode", "data.edits", "errors", "judges"),
        *("models.base", "monitoring.names", "parallel", "pixels", "randomness", "registry", "replay", "representations"),
        *("settings", "step", "step.losses", "storage"),
    },
    "engine": {
        *("config", "errors", "models.base", "models.weights", "parallel", "randomness", "registry", "shipped", "step"),
        "storage",
    },
    "evaluation": {
        *("attention", "data", "errors", "judges", "models.base", "monitoring.names", "parallel"),
        *("pictures", "pixels", "registry", "representations", "settings", "step", "storage"),
    },
    "checkpoint": {"config", "engine", "errors", "models.base", "models.weights", "parallel", "storage"},
    # third floor: the loop
    "training": {
        *("checkpoint", "config", "data", "engine", "errors", "evaluation", "models.base", "monitoring", "objectives"),
        *("parallel", "randomness", "registry", "settings", "step", "step.losses", "storage"),
    },
    # the tools and the front doors
    "tiny_world": {"data", "errors", "judges", "launching", "models", "parallel", "pixels", "representations"},
    "profiling": {"config", "data", "engine", "errors", "monitoring", "parallel", "shipped", "step", "training"},
    "diagnosis": {
        *("checkpoint", "config", "errors", "models.base", "models.weights", "randomness", "registry", "step", "training"),
    },
    "planning": {
        *("config", "data", "engine", "errors", "models.base", "monitoring.names", "objectives", "parallel", "profiling"),
        *("registry", "step"),
    },
    "reference": {"adversary", "config", "evaluation", "objectives", "registry", "settings", "sweeping"},
    "sweeping": {"config", "errors", "monitoring", "registry", "settings", "shipped", "storage"},
    "tools": {
        *(
            "attention",
            "checkpoint",
            "config",
            "data",
            "errors",
            "evaluation",
            "inference",
            "models",
            "models.base",
            "monitoring",
            "parallel",
        ),
        *("registry", "settings", "shipped", "step"),
    },
    "command_line": {"errors", "launching", "registry"},
    "__main__": {"command_line", "shipped"},
    "data_prep.count_tokens": {"config", "data", "errors", "models.base", "data_prep"},
    "data_prep.recipe_rows": {
        *("config", "data", "engine", "errors", "models.base", "objectives", "pictures", "registry", "step", "storage"),
        "data_prep",
    },
    # the one teacher that is a part of a family: its frozen tokenizer
    "data_prep.teachers.tokenizer": {"data", "errors", "models.base", "registry", "step", "storage", "data_prep"},
    "data_prep": {"config", "data", "errors", "judges", "pictures", "pixels", "registry", "settings", "step", "storage"},
    "inference": {
        *("checkpoint", "config", "data.conversation", "data.decode", "errors", "models", "models.base", "objectives"),
        *(
            "parallel",
            "pictures",
            "pixels",
            "randomness",
            "registry",
            "representations",
            "settings",
            "shipped",
            "step",
            "storage",
        ),
    },
    "commands": ANYTHING,
    "launch": ANYTHING,
}
ONLY_IN = {"deepspeed": {"engine"}}
"""Third-party package -> the rooms that may import it."""

NEVER_IMPORTED = {"pickle", "cloudpickle", "dill", "joblib"}
NEVER_PASSED = {"trust_remote_code", "allow_pickle"}
MACHINE_PATH = re.compile(r"(?<![\w.:/~}*$-])/(?:home|root|work|Users|opt|mnt)/\w")


def module_name(file: Path, root: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """The longest entry of the table that holds `module`; its first two names when the table has none."""
    inside = module.removeprefix("megaunigame.")
    rooms = [room for room in MAY_IMPORT if inside == room or inside.startswith(f"{room}.")]
    return max(rooms, key=len, default=inside.split(".")[0])


def imported(tree: ast.Module, module: str, is_package: bool, known: set[str]) -> Iterator[tuple[int, str]]:
    """(line, absolute module name) of every import in a file; `from a import b` is a.b when that is in `known`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if is_package else module.split(".")[:-1]
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield node.lineno, inner if inner in known else source


def may(room: str, target: str) -> bool:
    allowed = MAY_IMPORT[room] | {room}
    return allowed >= ANYTHING or any(target == a or target.startswith(f"{a}.") for a in allowed)


def is_import_of_ours(node: ast.stmt) -> bool:
    if isinstance(node, ast.ImportFrom):
        return bool(node.level) or (node.module or "").split(".")[0] in FOLDERS
    return isinstance(node, ast.Import) and any(alias.name.split(".")[0] in FOLDERS for alias in node.names)


def violations(root: Path) -> list[str]:
    """One line per import that breaks the table, as `file:line: what is wrong`."""
    files = [file for folder in FOLDERS for file in sorted((root / folder).rglob("*.py"))]
    modules = [module_name(file, root).split(".") for file in files]
    known = {".".join(parts[:depth]) for parts in modules for depth in range(1, len(parts) + 1)}
    found = []
    for file in files:
        module = module_name(file, root)
        room = room_of(module)
        where = file.relative_to(root).as_posix()
        if module == "megaunigame":
            if any(is_import_of_ours(node) for node in ast.parse(file.read_text()).body):
                found.append(f"{where}:1: the package itself imports nothing of ours, so that `import megaunigame` is free")
            continue
        if room not in MAY_IMPORT:
            found.append(f"{where}:1: `{room}` has no line in MAY_IMPORT of tests/test_layering.py; give it one")
            continue
        tree = ast.parse(file.read_text(), filename=where)
        for line, name in imported(tree, module, file.name == "__init__.py", known):
            top = name.split(".")[0]
            if top in FOLDERS and name != "megaunigame" and not may(room, room_of(name)):
                legal = ", ".join(sorted(MAY_IMPORT[room])) or "nothing of ours"
                found.append(f"{where}:{line}: {room} imports {name}; it may import {legal}")
            if room not in ONLY_IN.get(top, {room}):
                found.append(f"{where}:{line}: {room} imports {name}; only {', '.join(sorted(ONLY_IN[top]))} may")
    return found


def test_imports_point_down():
    found = violations(REPOSITORY)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    "file, text, message",
    [
        ("megaunigame/models/x.py", "import megaunigame.training.x", "models/x.py:1: models imports megaunigame.training.x"),
        ("megaunigame/models/x.py", "def f():\n    from megaunigame import objectives", "x.py:2: models imports"),
        ("megaunigame/data/x.py", "from ..models import base", "data/x.py:1: data imports megaunigame.models.base"),
        ("megaunigame/engine/x.py", "from megaunigame.models import janus", "engine imports megaunigame.models.janus"),
        ("megaunigame/objectives/x.py", "from megaunigame.data.loading.stream import Stream", "imports megaunigame.data"),
        ("megaunigame/training/x.py", "from deepspeed import zero", "training imports deepspeed; only engine may"),
        ("data_prep/x.py", "import launch.train", "data_prep/x.py:1: data_prep imports launch.train"),
        ("megaunigame/attic/x.py", "", "`attic` has no line in MAY_IMPORT"),
        ("megaunigame/__init__.py", "import megaunigame.step.inputs", "the package itself imports nothing of ours"),
    ],
)
def test_a_forbidden_import_is_caught(tmp_path, file, text, message):
    legal = {
        "megaunigame/models/base.py": "from megaunigame.step.rows import Row",
        "megaunigame/models/janus.py": "from megaunigame.models.base import UnifiedModel",
        "megaunigame/objectives/base.py": "from megaunigame.data.decode import Sample\nimport megaunigame",
        "megaunigame/engine/zero3.py": "import deepspeed\nfrom . import zero3",
        "megaunigame/data/loading/stream.py": "",
        "launch/train.py": "from megaunigame.training.trainer import Trainer",
    }
    for path, content in legal.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    assert violations(tmp_path) == []
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    found = violations(tmp_path)
    assert len(found) == 1 and message in found[0], found


def test_the_table_has_no_circle():
    """Rooms can be put in an order in which every one comes after all it may import, else CycleError names the circle."""
    TopologicalSorter(MAY_IMPORT).prepare()


def test_the_files_have_no_circle():
    """As the rooms. Imports for the type checker count; an `__init__.py` only passes on names, and does not."""
    files = [file for file in (REPOSITORY / "megaunigame").rglob("*.py") if file.name != "__init__.py"]
    trees = {module_name(file, REPOSITORY): ast.parse(file.read_text()) for file in files}
    imports = {name: {other for _, other in imported(tree, name, False, set(trees))} for name, tree in trees.items()}
    assert sum(map(len, imports.values())) > len(trees) > 100
    TopologicalSorter(imports).prepare()


def sources(*suffixes: str) -> Iterator[Path]:
    """Text files that belong to the repository, caches and environments left out."""
    for folder in (*FOLDERS, "tests", "ds_configs", ".ci", "docs"):
        for file in sorted((REPOSITORY / folder).rglob("*")):
            if file.is_file() and file.suffix in suffixes and "__pycache__" not in file.parts:
                yield file
    yield from (f for f in sorted(REPOSITORY.iterdir()) if f.is_file() and f.suffix in suffixes)


def test_no_path_of_one_machine():
    found = [
        f"{file.relative_to(REPOSITORY)}:{number}: {line.strip()}"
        for file in sources(".py", ".md", ".yaml", ".yml", ".json", ".toml", ".txt", ".sh", ".sbatch", ".example", "")
        for number, line in enumerate(file.read_text().splitlines(), start=1)
        if MACHINE_PATH.search(line)
    ]
    assert not found, "\n" + "\n".join(found)


def test_machine_path_pattern():
    assert MACHINE_PATH.search("root = '" + "/" + "home/me/data'")
    assert MACHINE_PATH.search("cp x " + "/" + "work/y")
    assert not MACHINE_PATH.search("https://example.org/home/page and ./work/x and runs/opt/x")


def test_no_foreign_code_and_no_pickle():
    """Nothing downloaded is executed: neither code that comes with a checkpoint nor pickled objects."""
    found = []
    for folder in FOLDERS:
        for file in sorted((REPOSITORY / folder).rglob("*.py")):
            tree = ast.parse(file.read_text())
            for line, name in imported(tree, module_name(file, REPOSITORY), file.name == "__init__.py", set()):
                if name.split(".")[0] in NEVER_IMPORTED:
                    found.append(f"{file.relative_to(REPOSITORY)}:{line}: import of {name}")
            for node in ast.walk(tree):
                off = isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant) and node.value.value is False
                named = {node.arg} if isinstance(node, ast.keyword) and not off else set()
                named |= {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()
                if named & NEVER_PASSED:
                    found.append(f"{file.relative_to(REPOSITORY)}:{node.lineno}: {', '.join(named)}")
                if isinstance(node, ast.keyword) and node.arg == "weights_only":
                    if not (isinstance(node.value, ast.Constant) and node.value.value is True):
                        found.append(f"{file.relative_to(REPOSITORY)}:{node.lineno}: weights_only is not True")
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained"):
                    # Without the argument, transformers may ask the user for a yes.
                    named = ast.unparse(node.func).lower().startswith("auto")
                    if named and "trust_remote_code" not in {keyword.arg for keyword in node.keywords}:
                        found.append(f"{file.relative_to(REPOSITORY)}:{node.lineno}: trust_remote_code=False is missing")
    assert not found, "\n" + "\n".join(found)


def test_the_top_of_the_package_is_short():
    """A room is a folder; what stays a file at the top is used by nearly all of them."""
    loose = [file.name for file in (REPOSITORY / "megaunigame").glob("*.py") if not file.name.startswith("__")]
    assert len(loose) <= 8, sorted(loose)


def test_files_stay_readable():
    files = sorted((REPOSITORY / "megaunigame").rglob("*.py"))
    lengths = {file.relative_to(REPOSITORY).as_posix(): len(file.read_text().splitlines()) for file in files}
    long = {name: length for name, length in lengths.items() if length > LONGEST_FILE}
    assert lengths and not long, f"longer than {LONGEST_FILE} lines: {long}"


def test_no_launch_script_finds_its_siblings():
    """`python launch/x.py` puts launch/ first on sys.path, where profile.py hides the standard module that torch imports:
    each script puts the repository there instead, before it imports anything that is not of the standard library."""
    replaced = re.compile(r"^sys\.path\.pop\(0\).*\nsys\.path\.insert\(0, str\(Path\(__file__\)", re.MULTILINE)
    scripts = sorted((REPOSITORY / "launch").glob("*.py"))
    assert scripts
    for script in scripts:
        text = script.read_text()
        found = replaced.search(text)
        assert found, f"{script.name} must take launch/ off sys.path, as train.py does"
        early = {name.split(".")[0] for _, name in imported(ast.parse(text[: found.start()]), script.stem, False, set())}
        assert early <= set(sys.stdlib_module_names), f"{script.name} imports {early} before it"
