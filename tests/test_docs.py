"""The documents point at what exists: files and headings in links, scripts, recipes, modules and options in commands."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from megaunigame.command_line import command_names, typed_name

REPOSITORY = Path(__file__).resolve().parents[1]
ROOMS = ("data_prep", "launch", "megaunigame", "tests")
COMMANDS = ("scenes", "pack", "annotate", "tokens", "verify", "stats")
"""Of `megaunigame prepare`, which is `python -m data_prep` in a clone."""
OF_MEGAUNIGAME = {typed_name(name) for name in command_names()}
"""Commands of `megaunigame`."""
PAGES = sorted(
    page.relative_to(REPOSITORY)
    for page in [
        *REPOSITORY.glob("*.md"),
        *(page for room in ("docs", *ROOMS) for page in (REPOSITORY / room).rglob("*.md")),
    ]
)
PRESENT = [page for page in PAGES if page.name != "CHANGELOG.md"]
"""Pages about the repository as it is."""
SCRIPTS = sorted(
    file.relative_to(REPOSITORY) for ending in ("py", "sh", "yaml") for file in (REPOSITORY / "launch").rglob(f"*.{ending}")
)
"""Scripts, recipes and sweeps."""
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^\s*```.*?^\s*```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"(?<![\w/.-])((?:launch|ds_configs|docs|tests|data_prep|megaunigame)/[\w./-]*\w\.\w+)\b(?![*{<])")
PLACEHOLDER = re.compile("NAME|RECIPE")
MODULE = re.compile(r"-m ((?:data_prep|megaunigame|tests)(?:\.\w+)*)")
COMMAND = re.compile(r"(?:\bpython|\btorchrun|\bdeepspeed|\bmegaunigame (?=[a-z]+ ))\b(?:\\\n|[^\n`])*")
"""To the end of its line, or of the last of its lines when they end with a backslash."""
DATA_PREP = re.compile(r"(?:-m data_prep|\bmegaunigame prepare) +([a-z][\w-]*)")
MEGAUNIGAME = re.compile(r"(?:^|`|\$ |&& )megaunigame +([a-z][\w-]*)", re.MULTILINE)
OPTION = re.compile(r"(?<![\w-])--([a-z][\w-]*)")
OF_LAUNCHERS = {"nproc_per_node", "nnodes", "num_gpus", "hostfile", "master_addr", "hypothesis-profile"}
"""Options of torchrun, deepspeed and pytest."""
WITH_MADE_NAMES = {"internvl", "transformer", "autoencoder"}
"""Options that no literal of the code names: the parts of `launch/family.py openuni assemble`."""


def text_of(page: Path) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    names: Counter[str] = Counter()
    anchors = set()
    for heading in re.findall(r"^#+ +(.+?) *$", FENCE.sub("", text_of(page)), re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        anchors.add(f"{name}-{names[name]}" if names[name] else name)
        names[name] += 1
    return anchors


def dead_links(page: Path) -> list[str]:
    dead = []
    for link in LINK.findall(FENCE.sub("", text_of(page))):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = ((REPOSITORY / page).parent / file).resolve() if file else REPOSITORY / page
        if not target.exists():
            dead.append(f"{link}: no such file")
        elif anchor and anchor not in anchors_of(target.relative_to(REPOSITORY)):
            dead.append(f"{link}: no such heading")
    return dead


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_to_files_and_headings(page):
    assert dead_links(page) == []


@pytest.mark.parametrize("page", [*PRESENT, *SCRIPTS], ids=str)
def test_files_that_are_named_exist(page):
    named = {name for name in FILE.findall(text_of(page)) if not PLACEHOLDER.search(name)}
    assert [name for name in sorted(named) if not (REPOSITORY / name).is_file()] == []


@pytest.mark.parametrize("page", [*PRESENT, *SCRIPTS], ids=str)
def test_modules_that_are_run_exist(page):
    files = {module: REPOSITORY / module.replace(".", "/") for module in MODULE.findall(text_of(page))}
    runnable = {m for m, file in files.items() if file.with_suffix(".py").is_file() or (file / "__main__.py").is_file()}
    assert sorted(files.keys() - runnable) == []


@pytest.fixture(scope="module")
def options() -> set[str]:
    """Of all programs of the repository together, and of launchers."""
    code = [file.read_text(encoding="utf-8") for room in ROOMS for file in (REPOSITORY / room).rglob("*.py")]
    return OF_LAUNCHERS | WITH_MADE_NAMES | {option for text in code for option in re.findall(r'"--([a-z][\w-]*)"', text)}


@pytest.mark.parametrize("page", [*PRESENT, *SCRIPTS], ids=str)
def test_commands_and_options_that_are_typed_exist(page, options):
    typed = COMMAND.findall(text_of(page))
    assert {name for command in typed for name in DATA_PREP.findall(command)} <= set(COMMANDS)
    assert {name for command in typed for name in OPTION.findall(command)} - options == set()
    assert set(MEGAUNIGAME.findall(text_of(page))) <= OF_MEGAUNIGAME


def test_the_check_sees_what_is_wrong():
    assert {"README.md", "docs/data.md", "docs/models/emu3.md"} <= {str(page) for page in PAGES}
    assert FILE.findall("run launch/trian.py with [launch/recipes/a.yaml]") == ["launch/trian.py", "launch/recipes/a.yaml"]
    assert MODULE.findall("python -m tests.gpu.measur a") == ["tests.gpu.measur"]
    (two_lines,) = COMMAND.findall("python launch/plan.py a \\\n    --node 2\nthen --other")
    assert OPTION.findall(two_lines) == ["node"]
    assert "weights-by-step" in anchors_of(Path("docs/unimrg.md"))
