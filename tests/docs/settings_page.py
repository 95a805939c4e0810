"""docs/config.md: every setting, from the dataclasses that hold them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from data_prep.teachers.base import Teacher
from megaunigame.reference.parts import Part, all_parts
from megaunigame.reference.settings import Section, Setting, sections
from megaunigame.registry import available, find

HEAD = """\
# Settings

This page is written by `python -m tests.docs.write_pages` from the source; do not edit it.

A recipe is a YAML file. Every key below can also be typed after the recipe, as `key=value`: `optimizer.lr=1e-5`,
`model.lora.rank=32`, `'data.train.where=[has depth.png]'`. The value is YAML and replaces the one in the file. `NAME` in a key
is a name of your choice. "required" has no default. An unknown key, a wrong type or a value out of bounds ends the run before
anything is loaded; the message has the key, and the nearest legal one. `megaunigame config WORD` prints the settings
with a word in their key.
"""
KINDS = {
    "recipe": ("Recipes", ""),
    "objective": (
        "Objectives",
        "`objectives: {NAME: {...}}` chooses an objective by its name; [objectives.md](objectives.md) compares them.",
    ),
    "adversary": (
        "Adversaries of UniGame",
        "`objectives.unigame.adversary: {kind: NAME, ...}` chooses one. To change the kind, give the whole block.",
    ),
    "suite": (
        "Evaluation suites",
        "`evaluation.suites: {LABEL: {suite: NAME, ...}}`; without `suite` the label is the name. More: "
        "[evaluation.md](evaluation.md).",
    ),
    "sweep": ("Sweep files", "A file for `megaunigame sweep`: arms x seeds of a recipe."),
    "teacher": (
        "Teachers of data_prep annotate",
        "`--TASK-teacher NAME` chooses one, `--set TASK.KEY=VALUE` sets these. Which teacher is for which task: "
        "[data.md](data.md#teachers).",
    ),
}
"""Kind of a part -> title and first lines of its chapter."""
TOP = {"recipe": "Top level", "sweep": "The file"}
"""Headings of sections without a path."""


def settings_page() -> str:
    parts = [*all_parts(), *_teachers()]
    chapters = (_chapter(kind, [part for part in parts if part.kind == kind]) for kind in KINDS)
    return "\n".join([HEAD, '<div class="settings" markdown>', "", *chapters, "</div>", ""])


def _teachers() -> Iterable[Part]:
    for name in available("teachers", Teacher, house="data_prep"):
        yield Part("teacher", name, tuple(sections(find("teachers", name, Teacher, house="data_prep").Config, "TASK")))


def _chapter(kind: str, parts: list[Part]) -> str:
    title, text = KINDS[kind]
    lines = [f"## {title}", ""]
    if text:
        lines += [text, ""]
    for part in parts:
        for section in part.sections:
            lines += _section(part, section)
    return "\n".join(lines)


def _section(part: Part, section: Section) -> list[str]:
    if not section.settings:
        return []
    lines = [f"### {_heading(part, section)}", ""]
    if section.meaning:
        lines += [_prose(section.meaning), ""]
    lines += ["| key | values | default | meaning |", "|---|---|---|---|"]
    return [*lines, *map(_row, section.settings), ""]


def _heading(part: Part, section: Section) -> str:
    """Of its own for each section, as anchors are made of headings."""
    if part.kind in ("adversary", "suite", "teacher"):
        inner = section.path.removeprefix(part.sections[0].path)
        return f"{part.kind} {part.name}{inner}"
    return section.path or TOP[part.kind]


def _row(setting: Setting) -> str:
    default = setting.default if setting.default == "required" else f"`{setting.default}`"
    if isinstance(setting.legal, str):
        values = setting.values
    else:
        values = ", ".join(f"`{name}`" for name in setting.legal)
        values = f"list of {values}" if setting.type.startswith("list") else values
    return f"| `{setting.key}` | {values} | {default} | {_prose(setting.meaning)} |"


def _prose(text: str) -> str:
    """A docstring in one line of Markdown: no HTML outside of code, links to pages.

    Raises ValueError for `|` inside of code, which tables cannot have."""
    pieces = re.split(r"(`[^`]*`)", " ".join(text.split()))
    if "|" in "".join(pieces[1::2]):
        raise ValueError(f"A docstring with a bar inside of code: {text!r}")
    outside = [re.sub(r"[<|]", lambda found: f"&#{ord(found[0])};", piece) for piece in pieces[::2]]
    linked = [re.sub(r"docs/(\w+\.md)(#[\w-]+)?", r"[\1](\1\2)", piece) for piece in outside]
    return "".join(piece for pair in zip(linked, [*pieces[1::2], ""], strict=True) for piece in pair)
