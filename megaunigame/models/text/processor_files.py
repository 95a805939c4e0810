"""Tokenizer and chat template of a model folder, such that transformers' processors make our token ids.

Our rows are tokenized piece by piece (`ConversationFormat`), so that a label never starts inside a token; transformers
tokenizes a whole prompt. The template therefore writes `BREAK` between two pieces, and the tokenizer splits there and drops it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from megaunigame.models.weights.settings_files import write_settings_file

BREAK = "\ufdd0"
"""A noncharacter of Unicode, for internal use: no text holds it."""
TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class Turns:
    """The text around the turns of a conversation; a piece is tokenized alone."""

    begin: str
    """Before everything; empty if transformers' processor adds it."""
    system_prompt: str
    """When the conversation begins with no system turn."""
    after_system: str
    """Ends a system prompt."""
    opening: str
    """Before the first question."""
    opening_after_system: str
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


def chat_template(turns: Turns) -> str:
    """A Jinja template for content that is text or a list of `{type: image}` and `{type: text}`.

    Pictures of a turn come before its text, as in training; several texts of a turn are lines.
    """
    literals = {name: json.dumps(value) for name, value in vars(turns).items()}
    return (
        "{%- macro words(content) -%}{%- if content is string -%}{{- content -}}{%- else -%}"
        '{%- for part in content if part.type == "text" -%}'
        '{{- ("" if loop.first else "\\n") ~ part.text -}}'
        "{%- endfor -%}{%- endif -%}{%- endmacro -%}\n"
        f"{{%- set break = {json.dumps(BREAK)} -%}}\n"
        f"{{%- set own = namespace(system={literals['system_prompt']}, asked=false) -%}}\n"
        '{%- if messages and messages[0].role == "system" -%}'
        "{%- set own.system = words(messages[0].content) -%}{%- endif -%}\n"
        f"{{%- if {literals['begin']} -%}}{{{{- {literals['begin']} ~ break -}}}}{{%- endif -%}}\n"
        f"{{%- if own.system -%}}{{{{- own.system ~ {literals['after_system']} ~ break -}}}}{{%- endif -%}}\n"
        "{%- for message in messages -%}\n"
        '{%- if message.role == "user" -%}\n'
        "{%- set pictures = [] if message.content is string else"
        ' message.content | selectattr("type", "equalto", "image") | list -%}\n'
        f"{{%- if own.asked -%}}{{{{- {literals['next_opening']} -}}}}"
        f"{{%- elif own.system -%}}{{{{- {literals['opening_after_system']} -}}}}"
        f"{{%- else -%}}{{{{- {literals['opening']} -}}}}{{%- endif -%}}\n"
        "{%- set own.asked = true -%}\n"
        f"{{{{- break -}}}}{{%- if pictures -%}}"
        f"{{{{- {literals['image']} * (pictures | length) ~ break ~ {literals['after_images']} -}}}}{{%- endif -%}}\n"
        "{{- words(message.content) ~ break -}}\n"
        '{%- elif message.role == "assistant" -%}\n'
        f"{{{{- {literals['closing']} ~ break ~ {literals['before_answer']}"
        f" ~ words(message.content) ~ break ~ {literals['end']} -}}}}\n"
        '{%- elif message.role != "system" or not loop.first -%}\n'
        '{{- raise_exception("Roles are user and assistant in turn, after at most one system turn; got " ~ message.role) -}}\n'
        "{%- endif -%}\n"
        "{%- endfor -%}\n"
        f"{{%- if add_generation_prompt -%}}{{{{- {literals['closing']} ~ break -}}}}{{%- endif -%}}\n"
    )


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
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n")
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
    (folder / TEMPLATE).write_text(chat_template(turns))


def _without_split(pre_tokenizer: dict[str, Any] | None, split: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer, without ours if the folder was exported before."""
    if pre_tokenizer is None:
        return []
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    return [step for step in steps if step != split]
