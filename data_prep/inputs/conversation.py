"""Texts of a sample as shards have them: the conversation in the form of LLaVA, and the caption.

How conversations are read is said in `megaunigame.data.conversation`, which training reads them with too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from megaunigame.data.conversation import IMAGE_MARKER, LONGEST_TEXT, TALK_KEYS, Conversation, places_in, read_conversation
from megaunigame.data.edits import EDITS, parse_edits, read_edits
from megaunigame.errors import DataError

from .sample import EntryFailure
from .texts import CAPTIONS, talk_of, with_caption

MARKER = IMAGE_MARKER
OTHER_ANSWERS = "`answers` that are not one list per question: left out"


def checked_talk(talk: Any, pictures: int) -> Conversation:
    """The conversation about this many pictures. Raises EntryFailure, worded as what the entry has."""
    try:
        return read_conversation(talk, pictures)
    except DataError as error:
        raise EntryFailure(str(error)) from error


def counted_places(talk: Any) -> int:
    """Places of pictures in the questions. Raises EntryFailure."""
    try:
        return places_in(talk)
    except DataError as error:
        raise EntryFailure(str(error)) from error


def checked_edits(edits: Any, pictures: int) -> Any:
    """The edits as they are. Raises EntryFailure, worded as what the entry has, unless they are about this many pictures."""
    try:
        read_edits(edits, pictures)
    except DataError as error:
        raise EntryFailure(str(error)) from error
    return edits


def places_of_edits(edits: Any) -> int:
    """Pictures that the edits have places for. Raises EntryFailure."""
    try:
        return parse_edits(edits)[-1].target + 1
    except DataError as error:
        raise EntryFailure(str(error)) from error


def checked_texts(
    record: dict[str, Any],
    pictures: int,
    notes: Counter[str],
    text: str | None = None,
    captions: Sequence[str] = CAPTIONS,
) -> dict[str, Any]:
    """The record with its conversation under `conversations`, as `Conversation.turns` has it, its caption stripped, and its
    edits as they are.

    The caption is `text`, which stands next to the record, or under one of the keys `captions`. `notes` counts what was left
    out. Raises EntryFailure when the record has none of them, or one that cannot be read.
    """
    record = with_caption(record, text, notes, captions)
    texts: dict[str, Any] = {}
    talk = talk_of(record)
    if talk is not None:
        conversation = checked_talk(talk, pictures)
        texts["conversations"] = conversation.turns(pictures)
        record = _without_other_answers(record, notes)
        require_as_many(record, conversation)
        notes.update(conversation.left_out)
    if record.get("caption") is not None:
        if not isinstance(record["caption"], str) or not record["caption"].strip():
            raise EntryFailure("has an empty caption, or one that is not text")
        if len(record["caption"]) > LONGEST_TEXT:
            raise EntryFailure(f"has a caption of {len(record['caption']):,} characters, more than {LONGEST_TEXT:,}")
        texts["caption"] = record["caption"].strip()
    if record.get(EDITS) is not None:
        texts[EDITS] = checked_edits(record[EDITS], pictures)
    if not texts:
        keys = f" (its keys: {', '.join(map(str, record))})" if record else ""
        raise EntryFailure(f"has neither a caption nor conversations{keys}")
    return {name: value for name, value in record.items() if name not in ("caption", EDITS, *TALK_KEYS)} | texts


def _without_other_answers(record: dict[str, Any], notes: Counter[str]) -> dict[str, Any]:
    """The record without `answers` of another meaning than a list per question: accepted answers to one, options to choose."""
    answers = record.get("answers")
    if not isinstance(answers, list) or (answers and all(isinstance(item, list) for item in answers)):
        return record
    notes[OTHER_ANSWERS] += 1
    return {name: value for name, value in record.items() if name != "answers"}


def require_as_many(record: dict[str, Any], conversation: Conversation) -> None:
    """Raises EntryFailure unless lists of the record that have one entry per question fit the questions that are left."""
    for name in ("kinds", "answers"):
        if isinstance(record.get(name), list) and len(record[name]) != len(conversation.pairs):
            asked = len(conversation.pairs)
            raise EntryFailure(f"has {len(record[name])} {name} for {asked} question{'s' * (asked != 1)}")
