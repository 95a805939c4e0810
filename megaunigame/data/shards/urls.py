"""URLs and what servers say, as text that can be shown: without passwords, and without characters that control a terminal."""

from __future__ import annotations

import re

from megaunigame.storage.plain_names import readable

_USER = re.compile(r"(://)[^/?#\s]*@")
LONGEST_REASON = 300
"""Characters."""


class FinalError(OSError):
    """Asking again does not help, and the shard is not merely away. The text follows the URL."""


class GoneError(FinalError):
    """The file is not there."""


def is_http(url: str) -> bool:
    return url.startswith(("http://", "https://")) and "::" not in url


def shown(text: str) -> str:
    """A URL, or a text with URLs, in one line; `***` stands for user and password."""
    return _USER.sub(r"\1***@", readable(" ".join(text.split())))


def reason_of(error: Exception) -> str:
    """Type and text; errors of time limits often have no text."""
    name, text = type(error).__name__, shown(str(error)).strip(" .")[:LONGEST_REASON]
    if text:
        return f"{name}: {text}"
    return f"{name}: no answer in time" if "Timeout" in name else name
