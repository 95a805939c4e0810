"""Texts of a sample as shards have them: the conversation in the form of LLaVA, and the caption.

How conversations are read is said in `megaunigame.data.conversation`, which training reads them with too.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from data_prep.inputs.sample import EntryFailure
from megaunigame.data.conversation import IMAGE_MARKER, TALK_KEYS, Conversation, read_conversation
from megaunigame.errors import DataError

MARKER = IMAGE_MARKER


def checked_talk(talk: Any, pictures: int) -> Conversation:
    """The conversation about this many pictures. Raises EntryFailure, worded as what the entry has."""
    try:
        return read_conversation(talk, pictures)
    except DataError as error:
        raise EntryFailure(str(error)) from error


def checked_texts(record: dict[str, Any], pictures: int, notes: Counter[str]) -> dict[str, Any]:
    """The record with its conversation under `conversations`, as `Conversation.turns` has it, and its caption stripped.

    `notes` counts what was left out. Raises EntryFailure when the record has neither, or one that cannot be read.
    """
    texts: dict[str, Any] = {}
    talk = next((record[key] for key in TALK_KEYS if record.get(key)), None)
    if talk is not None:
        conversation = checked_talk(talk, pictures)
        texts["conversations"] = conversation.turns(pictures)
        require_as_many(record, conversation)
        notes.update(conversation.left_out)
    if record.get("caption") is not None:
        if not isinstance(record["caption"], str) or not record["caption"].strip():
            raise EntryFailure("has an empty caption, or one that is not text")
        texts["caption"] = record["caption"].strip()
    if not texts:
        keys = f" (its keys: {', '.join(map(str, record))})" if record else ""
        raise EntryFailure(f"has neither a caption nor conversations{keys}")
    return {name: value for name, value in record.items() if name not in ("caption", *TALK_KEYS)} | texts


def require_as_many(record: dict[str, Any], conversation: Conversation) -> None:
    """Raises EntryFailure unless lists of the record that have one entry per question fit the questions that are left."""
    for name in ("kinds", "answers"):
        if isinstance(record.get(name), list) and len(record[name]) != len(conversation.pairs):
            raise EntryFailure(f"has {len(record[name])} {name} for {len(conversation.pairs)} questions")
