"""Texts as other tools store them: encodings, and the forms of a caption."""

from __future__ import annotations

import codecs
import json
from collections import Counter
from typing import Any

from data_prep.inputs.sample import EntryFailure

NOT_UTF8 = "text that is not UTF-8: read as Windows-1252"
SEVERAL = "caption that is a list: the first text is taken, all are kept in `captions`"
CAPTIONS = ("caption", "captions", "text")
"""Keys of a json that may hold the caption, in this order."""


def decoded_text(data: bytes, notes: Counter[str]) -> str:
    """UTF-8, or UTF-16 with a byte order mark; anything else is Windows-1252, which is counted.

    A byte order mark is no part of the text.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError as error:
            raise EntryFailure(f"has a text that cannot be read: {error}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        notes[NOT_UTF8] += 1
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:  # five bytes mean nothing there
        return data.decode("latin-1")


def decoded_record(data: bytes, notes: Counter[str]) -> dict[str, Any]:
    """The JSON object. Raises EntryFailure when it is not one."""
    try:
        record = json.loads(decoded_text(data, notes))
    except (ValueError, RecursionError) as error:
        raise EntryFailure(f"has a json that cannot be read: {error}") from error
    if not isinstance(record, dict):
        raise EntryFailure(f"has a json that is not an object but a {type(record).__name__}")
    return record


def with_caption(record: dict[str, Any], text: str | None, notes: Counter[str]) -> dict[str, Any]:
    """The record with its `caption`, from the text next to it or, without one, from its own keys; empty texts are left out.

    An empty caption stays only when there is nothing else, so that the entry is refused for it.
    Raises EntryFailure when a caption is neither a text nor a list of texts.
    """
    own = next((record[name] for name in CAPTIONS if record.get(name) not in (None, "", [])), None)
    rest = {name: value for name, value in record.items() if name != "caption"}
    if not rest.get("conversations"):
        rest.pop("conversations", None)
    if isinstance(own, list):
        texts = [item for item in own if isinstance(item, str) and item.strip()]
        if not texts:
            raise EntryFailure(f"has a caption that is a list without a text: {str(own)[:80]}")
        notes[SEVERAL] += 1
        own, rest["captions"] = texts[0], texts
    if own is not None and not isinstance(own, str):
        if "conversations" in rest and record.get("caption") is None:
            own = None  # `text` or `captions` of another meaning
        else:
            raise EntryFailure(f"has a caption that is not text but a {type(own).__name__}")
    given = [caption for caption in (text, own) if caption is not None]
    caption = next((caption for caption in given if caption.strip()), None)
    if caption is not None:
        return rest | {"caption": caption}
    was_empty = bool(given) or record.get("caption") == ""
    return rest | ({"caption": ""} if was_empty and not {"conversations", "messages"} & rest.keys() else {})
