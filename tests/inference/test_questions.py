"""Lines of questions and of prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megaunigame.errors import ConfigError, DataError
from megaunigame.inference.prompts import check_kind, prompt_line
from megaunigame.inference.questions import AskedLine, asked_line, read_items


def line(**fields) -> bytes:
    return json.dumps(fields).encode()


def test_a_plain_question():
    assert asked_line(line(image="a.png", question="<image>\nwhat ?"), 4) == AskedLine("4", "what ?", (), ("a.png",), "")
    assert asked_line(line(id=7, images=["a", "b"], question="q"), 4) == AskedLine("7", "q", (), ("a", "b"), "")
    assert asked_line(line(id="x", question="q"), 4).pictures == ()


def test_a_conversation_is_asked_its_last_question_after_the_others():
    first, last = {"from": "human", "value": "<image>\none ?"}, {"from": "human", "value": "two ?"}
    answer = {"from": "gpt", "value": "yes"}
    open_end = asked_line(line(image="a", conversations=[first, answer, last]), 0)
    assert open_end == AskedLine("0", "two ?", (("one ?", "yes"),), ("a",), "")
    closed = asked_line(line(image="a", conversations=[first, answer]), 0)
    assert closed == AskedLine("0", "one ?", (), ("a",), "yes")
    messages = [{"role": "system", "content": "be short"}, {"role": "user", "content": "three ?"}]
    assert asked_line(line(messages=messages), 0).question == "be short\nthree ?"


@pytest.mark.parametrize(
    "given, message",
    [
        (b"{", "is not JSON"),
        (b"[1]", "holds a list, not an object"),
        (line(id=[1], question="q"), "`id` must be a text or a whole number"),
        (line(id=True, question="q"), "`id` must be"),
        (line(question=" "), "`question` must be a text that is not blank"),
        (line(image="a"), "`question` must be .* The line has"),
        (line(image=3, question="q"), "`image` must be a path"),
        (line(images=["a", ""], question="q"), "`images` a list of paths"),
        (line(conversations=[{"from": "nobody", "value": "q"}]), "The line has a turn from 'nobody'"),
        (line(conversations="q"), "The conversation is a str"),
        (line(question="<image>\nwhat ?"), "The line has <image> 1 times"),
    ],
)
def test_a_bad_line_says_what_is_wrong(given, message):
    with pytest.raises(DataError, match=message):
        asked_line(given, 0)


def test_prompts_are_lines_of_text_or_objects():
    assert prompt_line(Path("a.txt"), "ä red cube \r".encode(), 2) == ("2", "ä red cube")
    assert prompt_line(Path("a.jsonl"), line(id="k", prompt="x"), 2) == ("k", "x")
    with pytest.raises(DataError, match="not UTF-8"):
        prompt_line(Path("a.txt"), b"\xff", 0)
    with pytest.raises(DataError, match="`prompt` must be a text"):
        prompt_line(Path("a.jsonl"), line(text="x"), 0)
    with pytest.raises(ConfigError, match="must end with .txt"):
        check_kind(Path("prompts.csv"))


def test_blank_lines_do_not_count(tmp_path):
    (tmp_path / "a").write_text("one\n\n  \ntwo")
    assert read_items(tmp_path / "a") == [(1, b"one"), (4, b"two")]
    (tmp_path / "a").write_text("\ufeffa red cube", encoding="utf-8")
    assert read_items(tmp_path / "a") == [(1, b"a red cube")]
    for name, text in (("empty", "\n"), ("missing", None)):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match="Give a file with one item a line"):
            read_items(tmp_path / name)
