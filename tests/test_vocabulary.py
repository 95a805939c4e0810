"""The core speaks of rows, passes and players: no word of a method or of a family stands in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parents[1] / "megaunigame"
CORE = ("step", "training", "data", "engine", "registry.py", "config", "models/base")
METHOD_WORDS = {"attack", "adversar", "opponent"}
EXCEPTIONS = {("config/model.py", "janus"): 2}
"""(file, word) -> lines that may have it: the default family, and the folder of its 7B model in an example."""


def named_things() -> set[str]:
    """Families and methods: folders with a file of the name that each of them has."""
    families = {file.parent.name for file in (HOUSE / "models").glob("*/configuration.py")}
    methods = {file.parent.name for file in (HOUSE / "objectives").glob("*/objective.py")}
    assert len(families) >= 3 and len(methods) >= 3
    return families | methods


def found_in(text: str, word: str) -> int:
    """Lines with the word, also within another one; the name of the package is not UniGame's."""
    whole = rf"\b{word}\b" if len(word) < 4 else word
    return sum(bool(re.search(whole, line.lower().replace("megaunigame", ""))) for line in text.splitlines())


def test_no_word_of_a_method_or_family_in_the_core():
    files = [f for room in CORE for f in ([HOUSE / room] if room.endswith(".py") else sorted((HOUSE / room).rglob("*.py")))]
    assert len(files) > 40
    found = []
    for file in files:
        name = file.relative_to(HOUSE).as_posix()
        for word in sorted(METHOD_WORDS | named_things()):
            lines = found_in(file.read_text(), word)
            if lines > EXCEPTIONS.get((name, word), 0):
                found.append(f"{name}: {word!r} in {lines} lines")
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("line", "word"),
    [("the Adversary moves", "adversar"), ("from megaunigame.models.emu3 import x", "emu3"), ("as in UniGame", "unigame")],
)
def test_a_word_is_found(line, word):
    assert found_in(line, word) == 1


@pytest.mark.parametrize("line", ["from megaunigame.step import rows", "a maia", "opposite"])
def test_other_words_are_not(line):
    assert not any(found_in(line, word) for word in METHOD_WORDS | named_things())
