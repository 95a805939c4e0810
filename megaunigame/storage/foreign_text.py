"""Values and texts that somebody else wrote, as they may stand in a message: in one line, of bounded length, and without
characters that control a terminal or hide what is written."""

from __future__ import annotations

import reprlib
from typing import Any

from megaunigame.storage.plain_names import readable

LONGEST = 300
"""Characters of a text in a message."""
_short = reprlib.Repr()  # unlike repr, it is bounded in depth and in time
_short.maxstring = _short.maxother = _short.maxlong = LONGEST
_short.maxlevel, _short.maxlist, _short.maxtuple, _short.maxdict = 4, 8, 8, 8


def quoted(value: Any, most: int = 80) -> str:
    """A value of a JSON file as Python writes it: a text in quotes, escapes in place of controls."""
    return _cut(readable(_short.repr(value)), most)


def one_line(text: str | Exception, most: int = LONGEST) -> str:
    """A text, or that of an error, with blanks in place of line breaks and U+FFFD in place of controls."""
    return _cut(readable(" ".join(str(text)[: 4 * most].split())), most)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
