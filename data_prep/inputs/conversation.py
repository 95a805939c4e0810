"""Conversations in the LLaVA form: checked, and with the image marker where the trainer expects it."""

from __future__ import annotations

import json
from typing import Any

from data_prep.inputs.sample import EntryFailure

MARKER = "<image>"


def checked_turns(turns: Any, has_image: bool) -> list[dict[str, Any]]:
    """The turns; those of a sample with a picture have the marker exactly once, at the start of the first human turn.

    Raises EntryFailure, worded as what the entry has, unless human and gpt alternate (system excepted).
    """
    if not isinstance(turns, list) or not turns:
        raise EntryFailure("has no conversations")
    for turn in turns:
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str) or "from" not in turn:
            raise EntryFailure(f"has a turn that is not {{from, value}}: {json.dumps(turn)[:80]}")
    speakers = [turn["from"] for turn in turns if turn["from"] != "system"]
    if not speakers or speakers != ["human", "gpt"] * (len(speakers) // 2):
        raise EntryFailure(f"has turns from {speakers}; human and gpt must alternate, human first, gpt last")
    if has_image:
        return _marked(turns)
    if any(MARKER in turn["value"] for turn in turns):
        raise EntryFailure(f"has {MARKER} in a turn but no image")
    return turns


def _marked(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    first = next(k for k, turn in enumerate(turns) if turn["from"] == "human")
    if sum(turn["value"].count(MARKER) for turn in turns) - turns[first]["value"].count(MARKER):
        raise EntryFailure(f"has {MARKER} outside its first human turn")
    if turns[first]["value"].count(MARKER) > 1:
        raise EntryFailure(f"has {MARKER} more than once")
    words = turns[first]["value"].replace(MARKER, "").strip()
    marked = {**turns[first], "value": f"{MARKER}\n{words}"}
    return [*turns[:first], marked, *turns[first + 1 :]]


def checked_texts(record: dict[str, Any], has_image: bool) -> dict[str, Any]:
    """The record of a sample from a table or a tar, its conversations checked and its caption stripped.

    Raises EntryFailure when it has neither.
    """
    texts: dict[str, Any] = {}
    if record.get("conversations") is not None:
        texts["conversations"] = checked_turns(record["conversations"], has_image)
    if record.get("caption") is not None:
        if not isinstance(record["caption"], str) or not record["caption"].strip():
            raise EntryFailure("has an empty caption, or one that is not text")
        texts["caption"] = record["caption"].strip()
    if not texts:
        raise EntryFailure("has neither a caption nor conversations")
    return {**{name: value for name, value in record.items() if name not in ("caption", "conversations")}, **texts}
