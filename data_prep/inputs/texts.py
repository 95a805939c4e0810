"""Texts as other tools store them: encodings, and the forms of a caption."""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from megaunigame.data.conversation import NULS, TALK_KEYS
from megaunigame.storage.foreign_text import quoted
from megaunigame.storage.untrusted_json import is_deeper_than

from .sample import EntryFailure

NOT_UTF8 = "text that is not UTF-8: read as Windows-1252"
NO_MARK = "text that is UTF-16 without a byte order mark: read as that"
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # it begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
SEVERAL = "caption that is a list: the first text is taken, all are kept in `captions`"
CAPTIONS = ("caption", "captions", "text")
"""Keys of a json that may hold the caption, in this order."""


def decoded_text(data: bytes, notes: Counter[str]) -> str:
    """UTF-8, or UTF-16 or UTF-32 with a byte order mark, or UTF-16 that nulls give away; anything else is Windows-1252.

    The last two are counted. A byte order mark is not part of the text.
    """
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), None) or _utf16_without_mark(data)
    if encoding is not None:
        notes[NO_MARK] += encoding in ("utf-16-le", "utf-16-be")
        try:
            return data.decode(encoding)
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


def _utf16_without_mark(data: bytes) -> str | None:
    """The byte order of a text whose high bytes are null, most of them and no others; None: it is not such a text."""
    if len(data) % 2 or b"\0" not in data:
        return None
    even, odd = data[::2].count(0), data[1::2].count(0)
    most = len(data) // 4
    order = "utf-16-le" if odd > most and not even else "utf-16-be" if even > most and not odd else None
    try:
        return order if order and data.decode(order) else None
    except UnicodeDecodeError:
        return None


def decoded_record(data: bytes, notes: Counter[str]) -> dict[str, Any]:
    """The JSON object. Raises EntryFailure when it is not one."""
    try:
        record = json.loads(decoded_text(data, notes))
    except (ValueError, RecursionError) as error:
        raise EntryFailure(f"has a json that cannot be read: {error}") from error
    if not isinstance(record, dict):
        raise EntryFailure(f"has a json that is not an object but a {type(record).__name__}")
    if is_deeper_than(record):
        raise EntryFailure("is nested too deeply")
    return record


def talk_of(record: dict[str, Any]) -> Any:
    """What the record holds as its conversation; None without one."""
    return next((record[key] for key in TALK_KEYS if record.get(key)), None)


def with_caption(
    record: dict[str, Any], text: str | None, notes: Counter[str], captions: Sequence[str] = CAPTIONS
) -> dict[str, Any]:
    """The record with its `caption`, from the text next to it or, without one, from its own keys; empty texts are left out.

    An empty caption stays only when there is nothing else, so that the entry is refused for it.
    Raises EntryFailure when a caption is neither a text nor a list of texts.
    """
    has_talk = talk_of(record) is not None
    own = next((record[name] for name in captions if not _is_empty(record.get(name))), None)
    empty = {"caption", *(key for key in TALK_KEYS if not record.get(key))}
    rest = {name: value for name, value in record.items() if name not in empty}
    if isinstance(own, list):
        texts = [written for item in own if isinstance(item, str) and (written := item.replace("\0", "")).strip()]
        if texts:
            notes[SEVERAL] += 1
            notes[NULS] += any("\0" in item for item in own if isinstance(item, str))
            own, rest["captions"] = texts[0], texts
        elif has_talk:
            own = None
        else:
            raise EntryFailure(f"has a caption that is a list without a text: {quoted(own)}")
    if own is not None and not isinstance(own, str):
        if has_talk and record.get("caption") is None:
            own = None  # `text` or `captions` of another meaning
        else:
            raise EntryFailure(f"has a caption that is not text but a {type(own).__name__}")
    given = [caption for caption in (text, own) if caption is not None]
    caption = next((caption for caption in given if caption.replace("\0", "").strip()), None)
    if caption is not None:
        notes[NULS] += "\0" in caption
        return rest | {"caption": caption.replace("\0", "")}
    was_empty = bool(given) or isinstance(record.get("caption"), str)
    return rest | ({"caption": ""} if was_empty and not has_talk else {})


def _is_empty(caption: Any) -> bool:
    return not caption.replace("\0", "").strip() if isinstance(caption, str) else caption in (None, [])
