"""Tokenizer and chat template of a model folder, such that transformers' processors make our token ids.

Our rows are tokenized piece by piece (`ConversationFormat`), so that a label never starts inside a token; transformers
tokenizes a whole prompt. The template therefore writes `BREAK` between two pieces, and the tokenizer splits there and drops it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from megaunigame.models.text.plain_text import PlainText
from megaunigame.models.weights.settings_files import write_settings_file

BREAK = "\ufdd0"
"""A noncharacter of Unicode, for internal use: no text holds it."""
TEMPLATE = "chat_template.jinja"
"""Name in a model folder; also of the file next to this one, which has the part that is the same for every family."""
NUMBER = re.compile(r"(.+?)([0-9]{1,9})([^0-9]+)")
FEWEST = 8


@dataclass(frozen=True)
class Turns:
    """The text around the turns of a conversation; a piece is tokenized alone."""

    opening: tuple[str, ...]
    """Pieces before the first question: the first token, unless transformers' processor adds it, and the system prompt."""
    next_opening: str
    """Before every other question."""
    image: str
    """Placeholder of one picture in transformers' processor."""
    after_images: str
    """Before a question that follows pictures."""
    closing: str
    """Between question and answer."""
    before_answer: str
    end: str
    """Ends an answer."""
    last_closing: str | None = None
    """After a question whose answer is still to come; None: `closing`. Another where transformers' processor adds to it."""


def chat_template(turns: Turns, controls: Iterable[str]) -> str:
    """A Jinja template for content that is text or a list of `{type: image}` and `{type: text}`.

    It reads conversations as `data.conversation` does, and keeps `controls` that are written in a text as text, as `PlainText`
    does. What it cannot read in that way it refuses with a message.
    """
    single, numbered = _numbered(controls)
    last_closing = turns.closing if turns.last_closing is None else turns.last_closing
    settings = {
        "format": {"break": BREAK, **vars(turns), "last_closing": last_closing},
        "controls": {"single": single, "numbered": [vars(row) for row in numbered]},
    }
    # A JSON text is a Jinja literal, except that Jinja does not join surrogate pairs.
    literals = (f"{{%- set {name} = {json.dumps(value, ensure_ascii=False)} -%}}\n" for name, value in settings.items())
    return "".join(literals) + Path(__file__).with_name(TEMPLATE).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Numbered:
    """Control tokens that differ in a number, as the codes of a picture do: too many for a template to list."""

    before: str
    after: str
    form: str
    """How the number is written, for `%`."""
    first: int
    last: int


def _numbered(controls: Iterable[str]) -> tuple[list[str], list[Numbered]]:
    """The control tokens one by one, a longer one before those in it; and those of `FEWEST` or more numbers without a gap."""
    groups: dict[tuple[str, str], list[str]] = {}
    single: list[str] = []
    for token in controls:
        if found := NUMBER.fullmatch(token):
            groups.setdefault((found[1], found[3]), []).append(found[2])
        else:
            single.append(token)
    rows = []
    for (before, after), numbers in groups.items():
        first, last = min(map(int, numbers)), max(map(int, numbers))
        forms = ("%d", f"%0{min(map(len, numbers))}d")
        form = next((f for f in forms if {f % n for n in range(first, last + 1)} == set(numbers)), None)
        if form is None or len(numbers) < FEWEST:
            single += [before + number + after for number in numbers]
        else:
            rows.append(Numbered(before, after, form, first, last))
    return sorted(single, key=lambda token: (-len(token), token)), rows


def write_tokenizer(
    folder: Path, tokenizer: PreTrainedTokenizerFast, turns: Turns, named: Mapping[str, str], processor_class: str
) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template.

    `named`: attribute that the class of the processor reads from its tokenizer -> token. A tokenizer without padding token pads
    with the end token, as our rows do. Nothing is added around a text: the template says what begins a conversation.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    split = {"type": "Split", "pattern": {"String": BREAK}, "behavior": "Removed", "invert": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, *_without_split(content["pre_tokenizer"], split)]}
    content["post_processor"] = content["truncation"] = content["padding"] = None
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": processor_class,
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token or tokenizer.eos_token,
        "extra_special_tokens": dict(named),
        "model_max_length": tokenizer.model_max_length,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    write_settings_file(folder / "tokenizer_config.json", settings)
    vocabulary = tokenizer.get_vocab()
    plain = PlainText(tokenizer, (vocabulary[token] for token in named.values() if token in vocabulary))
    template = chat_template(turns, {*plain.written, *named.values()})
    (folder / TEMPLATE).write_text(template, encoding="utf-8")


def _without_split(pre_tokenizer: dict[str, Any] | None, split: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer, without ours if the folder was exported before."""
    if pre_tokenizer is None:
        return []
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    return [step for step in steps if step != split]
