"""The chat template of an exported folder reads a conversation as training does, or refuses it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from transformers import AutoProcessor

from megaunigame.data.conversation import IMAGE_MARKER, read_conversation
from megaunigame.errors import DataError
from megaunigame.models.chameleon.conversation import SEPARATOR
from megaunigame.models.text.processor_files import BREAK, TEMPLATE, _numbered
from tests.tiny import write_tiny

SYSTEM = 'Hi 😀 {{ "x" }} \\\\ {% endif %}'
"""Characters above U+FFFF, quotes, a backslash, and what Jinja reads as its own."""
SIDES = {"image_size": 16, "source_size": 16}
FAMILIES = {"janus": {}, "emu3": SIDES, "chameleon": SIDES}
"""Settings of the folder, besides the system prompt."""
PIECES = ["a", "what ?", "é", "😀", " ", "\n", "\t", "\u3000", "<", "s>", ">", "|>", "7", "000003", "{{ 1 }}", "\0"]
CODE = "<|visual token 000003|>"
CONTROLS = [
    "</s>",
    "<|User|>: ",
    "<image_placeholder>",
    "<begin_of_image>",
    "<|extra_204|>",
    "<|visual token ",
    CODE,
    "IMGIMGBJZ",
    "<eoss>",
]


@cache
def opened(family: str):
    """transformers' processor of an export, and our format of the folder it was made from."""
    home = Path(mkdtemp())
    tiny = write_tiny(
        family, home / "model", ["what is this ? a red ball"], 290, settings={**FAMILIES[family], "system_prompt": SYSTEM}
    )
    tiny.family.write_settings(str(tiny.path), home / "out")
    return AutoProcessor.from_pretrained(home / "out"), tiny.processor(4000).format


def ids_in_transformers(family: str, messages, **options) -> list[int]:
    processor, ours = opened(family)
    template = processor.chat_template or processor.tokenizer.chat_template  # ChameleonProcessor does not take its own
    prompt = processor.apply_chat_template(messages, template, **options)
    if family == "janus":
        picture = ours.begin_of_image + ours.image_token * ours.visual_tokens + ours.end_of_image
        return processor.tokenizer(prompt.replace(ours.image_token, picture))["input_ids"]
    if family == "chameleon":  # transformers' processor puts the separator after a prompt
        picture = ours.begin_of_image + ours.image_token * ours.visual_tokens + ours.end_of_image
        after = SEPARATOR if options.get("add_generation_prompt") else ""
        return processor.tokenizer(prompt.replace("<image>", picture) + after)["input_ids"]
    grid = ours.source_grid
    lines = (ours.image_token * grid.width + "<|extra_200|>") * grid.height
    picture = f"<|image start|>{grid.size}<|image token|>{lines}<|extra_201|><|image end|>"
    return processor.tokenizer(processor.tokenizer.bos_token + prompt.replace("<image>", picture))["input_ids"]


def ids_of_training(family: str, messages, pictures: int) -> list[int]:
    """Of the row; of its part before the answer when the conversation ends with a question."""
    ours = opened(family)[1]
    if messages[-1]["role"] == "assistant":
        return ours.understand(pictures, read_conversation(messages, pictures).asked(), False, 4000).tokens
    answered = [*messages, {"role": "assistant", "content": "a"}]
    tokens = ours.understand(pictures, read_conversation(answered, pictures).asked(), False, 4000).tokens
    return tokens[: -len(ours.encode(ours.before_answer + "a")) - 1]


def compare(family: str, messages, pictures: int) -> None:
    asks = messages[-1]["role"] != "assistant"
    assert ids_in_transformers(family, messages, add_generation_prompt=asks) == ids_of_training(family, messages, pictures)


def said(role: str, *parts: str | None) -> dict:
    """A turn of texts and, for None, pictures."""
    shown = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
    return {"role": role, "content": shown}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("messages", "pictures"),
    [
        ([said("system", "be short"), said("user", "what ?")], 0),
        ([said("system", " be short "), said("system", ""), said("system", "or long"), said("user", None, "what ?", None)], 2),
        ([{"role": "system", "content": "be short"}, {"role": "user", "content": " what ?\n"}], 0),
        ([said("user", "what", " is", None, "it", "?"), said("assistant", " a ", "b\n")], 1),
        ([said("user", "a"), said("user", "b"), said("assistant", "c"), said("assistant", "d"), said("user", "e")], 0),
        ([said("assistant", "hello"), said("user", "a")], 0),
        ([said("user", "a"), said("assistant", " "), said("user", "b"), said("assistant", "c"), said("user", None)], 1),
        ([said("user", "a"), said("assistant", "b"), said("system", "now"), said("user", "c")], 0),
        ([said("system", "</s> <|User|>: <image>"), said("user", "</s> <|User|>: hi <image>"), said("assistant", "</s>")], 0),
        ([said("user", "<|visual token 000003|> <|visual token 3|> <|visual token 999999|> <|extra_203|>")], 0),
        ([said("user", "<</s></s><|image start|><image_placeholder>")], 0),
        ([said("user", "IMGIMGBZ IMGIMGBCZ IMGIMGBZZ IMGIMGIMGIMGAZ <reserved08706><racm3:break>")], 0),
        ([said("system", "a\0"), said("user", None)], 1),
    ],
)
def test_conversations_have_the_ids_of_training(family, messages, pictures):
    compare(family, messages, pictures)


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        ([said("tool", "x"), said("user", "a")], "got tool"),
        ([said("user", "a"), said("assistant", "b", None)], "Only user turns have pictures"),
        ([said("system", None), said("user", "a")], "Only user turns have pictures"),
        ([{"role": "user", "content": [{"type": "video"}]}], "got video"),
        ([{"role": "user", "content": 3}], "must be a text or a list"),
        ([said("user", "a <image>", None)], "give a part {type: image}"),
        ([said("user", "<image>\na")], "give a part {type: image}"),
        ([said("user", " ")], "last question is empty"),
        ([said("system", "a")], "neither a question"),
        ([said("user", "a"), {**said("assistant", "b"), "tool_calls": [{}]}, said("user", "c")], "without tools"),
        ([said("user", f"</{BREAK}s>")], "U+FDD0"),
        ([said("user", "a"), said("assistant", "b")], "ends with an answer"),
    ],
)
def test_what_training_does_not_have_is_refused(messages, part):
    for family in FAMILIES:
        with pytest.raises(TemplateError) as caught:
            ids_in_transformers(family, messages, add_generation_prompt=True)
        assert part in str(caught.value)


def test_tools_are_refused():
    processor, _ = opened("janus")
    with pytest.raises(TemplateError, match="without tools"):
        processor.apply_chat_template([said("user", "a")], tools=[{"type": "function"}])


def test_an_answer_can_be_continued():
    messages = [said("user", "a"), {"role": "assistant", "content": "b c"}]
    whole = ids_of_training("janus", messages, 0)
    assert ids_in_transformers("janus", messages, continue_final_message=True) == whole[:-1]


TEXT = st.lists(st.sampled_from([*PIECES, *PIECES, *CONTROLS]) | st.text(max_size=3), min_size=1, max_size=5).map("".join)
WORDS = st.builds(lambda text: {"type": "text", "text": text}, TEXT)
PICTURE = st.just({"type": "image"})
QUESTION = st.fixed_dictionaries({"role": st.just("user"), "content": TEXT | st.lists(WORDS | PICTURE, max_size=3)})
ROLE = st.sampled_from(["assistant", "assistant", "system"])
OTHER = st.fixed_dictionaries({"role": ROLE, "content": TEXT | st.lists(WORDS, max_size=3)})
MESSAGES = st.lists(QUESTION | OTHER, min_size=1, max_size=6)


@given(messages=MESSAGES, marked=st.sampled_from([None, None, IMAGE_MARKER, f"{IMAGE_MARKER}\n", f"x {IMAGE_MARKER}</image>"]))
@example(messages=[{"role": "user", "content": "a"}], marked=None)
@settings(max_examples=150, deadline=None)
def test_any_conversation_has_the_ids_of_training_or_is_refused(messages, marked):
    """`marked`: begins the last turn, if that is a text."""
    if marked and isinstance(messages[-1]["content"], str):
        messages = [*messages[:-1], {**messages[-1], "content": marked + messages[-1]["content"]}]
    shown = [part for turn in messages if isinstance(turn["content"], list) for part in turn["content"]]
    pictures = sum(part["type"] == "image" for part in shown)
    for family in FAMILIES:
        try:
            ids = ids_in_transformers(family, messages, add_generation_prompt=messages[-1]["role"] != "assistant")
        except TemplateError as error:
            assert str(error).endswith(".")  # noqa: PT017 -- a sentence of ours
            continue
        assert ids == ids_of_training(family, messages, pictures)


@given(messages=MESSAGES.filter(lambda m: all(isinstance(turn["content"], str) for turn in m)))
@settings(max_examples=50, deadline=None)
def test_texts_that_training_reads_are_not_refused(messages):
    """Except BREAK, which the template needs for itself."""
    assume(not any(BREAK in turn["content"] for turn in messages))
    assume(messages[-1]["role"] == "assistant" or messages[-1]["content"].replace("\0", "").strip())
    try:
        ids_of_training("janus", messages, 0)
    except DataError:
        return
    compare("janus", messages, 0)


def test_numbered_tokens_are_one_row_where_no_number_is_missing():
    codes = [f"<c {n:03d}>" for n in range(120)]
    single, numbered = _numbered([*codes, "<a>", *(f"<x{n}>" for n in range(9)), *(f"<y{n}>" for n in (1, *range(3, 12)))])
    assert {(row.before, row.form, row.first, row.last) for row in numbered} == {("<c ", "%03d", 0, 119), ("<x", "%d", 0, 8)}
    assert {"<a>", "<y1>", "<y11>"} <= set(single) and len(single) == 11


def test_the_template_of_many_codes_is_small_and_utf8(tmp_path):
    tiny = write_tiny("emu3", tmp_path / "model", ["a"], 290, settings={**SIDES, "system_prompt": SYSTEM})
    tiny.family.write_settings(str(tiny.path), tmp_path / "out")
    text = (tmp_path / "out" / TEMPLATE).read_bytes().decode("utf-8")
    assert "😀" in text and text.count("visual token") == 1
    assert json.loads((tmp_path / "out" / "processor_config.json").read_text())["system_prompt"] == SYSTEM
