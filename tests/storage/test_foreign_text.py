"""What others wrote, in messages: one line, of bounded length, nothing that controls a terminal."""

from __future__ import annotations

import time

import pytest

from megaunigame.storage.foreign_text import one_line, quoted
from tests.faults.hostile_bytes import CONTROLS, showable


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("text", [*CONTROLS, "".join(CONTROLS) * 500, "a\nb\r\nc", "\ud800"])
def test_any_text_is_shown_in_one_line(text):
    for shown in (quoted(text), quoted({text: [text]}), one_line(text), one_line(ValueError(text))):
        assert showable(shown) and len(shown) <= 300
        shown.encode()


def test_values_are_bounded_in_depth_size_and_time():
    began = time.process_time()
    for value in (nested(100_000), list(range(10**6)), {n: n for n in range(10**5)}, "x" * 10**8, 10**4000, None, 1.5):
        assert len(quoted(value)) <= 80
    assert time.process_time() - began < 2


def test_usual_values_stay_as_they_are():
    assert quoted("a é 日本.tar") == "'a é 日本.tar'" and quoted(3) == "3" and quoted({"a": [1, None]}) == "{'a': [1, None]}"
    assert one_line("it is  so\n") == "it is so" and quoted("x" * 200).endswith("...") and len(quoted("x" * 200)) == 80
