"""Conversations as tables hold them (`role` and `content`, lists of parts) in the LLaVA form."""

from __future__ import annotations

import json
from typing import Any

from data_prep.inputs.conversation import MARKER
from data_prep.inputs.sample import EntryFailure

SPEAKERS = {"user": "human", "assistant": "gpt"}


def turns_of(value: Any) -> Any:
    """A list of {from, value}, out of that, its JSON text, a list of {role, content}, or one list per key of the turns.

    `content` is a text or a list of parts, of which texts are joined and pictures become markers. Anything else is returned
    as it is, for the check of conversations to refuse. Raises EntryFailure for a text that is not JSON.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise EntryFailure(f"has conversations that are not JSON: {error}") from error
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        # Hugging Face stores a sequence of records as a record of sequences.
        value = [dict(zip(value, row, strict=False)) for row in zip(*value.values(), strict=False)]
    if not isinstance(value, list) or not all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in value):
        return value
    return [{"from": SPEAKERS.get(turn["role"], turn["role"]), "value": _text_of(turn["content"])} for turn in value]


def _text_of(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            texts.append(part.get("text") or "")
        elif kind in ("image", "image_url"):
            texts.append(MARKER)
        else:
            raise EntryFailure(f"has a part of a message that is neither text nor image: {str(part)[:80]}")
    return "\n".join(texts)
