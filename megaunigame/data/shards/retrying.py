"""Asks a server again, later and later, where that may help."""

from __future__ import annotations

import errno
import logging
import time
import urllib.error
from collections.abc import Callable
from typing import TypeVar

from megaunigame.data.shards.http import BUSY, FinalError
from megaunigame.errors import DataError, LostShard, UserError

T = TypeVar("T")
ATTEMPTS = 8
FIRST_PAUSE = 1.0
"""Seconds before the second attempt; each later pause is twice as long: two minutes in all."""
LONGEST_WISH = 60.0
"""Seconds that a server may ask for (Retry-After)."""
ATTEMPTS_AT_CONTENT = 2
"""A file of another size or hash is asked for once more: bytes may change on the way, but mostly it is another file."""

log = logging.getLogger(__name__)


class OtherContentError(OSError):
    """The file is not the one that the manifest describes."""


def attempt(url: str, work: Callable[[], T], first_pause: float = FIRST_PAUSE) -> T:
    """Do the work; again with exponential backoff after what may pass. Raises LostShard, with the reason and what helps, when
    the file cannot be had, DataError when it is another one."""
    others = 0
    for number in range(1, ATTEMPTS + 1):
        try:
            return work()
        except UserError:
            raise
        except FinalError as error:
            raise LostShard(f"{url} {error}.") from error
        except (FileNotFoundError, PermissionError) as error:
            raise LostShard(f"{url} is not there or may not be read ({error or type(error).__name__}).") from error
        except OtherContentError as error:
            others += 1
            problem: Exception = error
            if others == ATTEMPTS_AT_CONTENT:
                raise DataError(f"{url} {error}. Upload the folder again, dataset.json last.") from error
        except Exception as error:  # every file system of fsspec has other error types
            problem = error
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DataError(
                    f"{url} does not fit on the disk of the cache ({error}). Make room, or type a lower cache.gigabytes."
                ) from error
            if _is_final(error):
                raise LostShard(f"{url}: {reason_of(error)}. Asking again does not help: check who may read it.") from error
        if number < ATTEMPTS:
            pause = max(first_pause * 2 ** (number - 1), _wish(problem))
            log.warning("%s: %s. Trying again in %.0f s.", url, reason_of(problem), pause)
            time.sleep(pause)
    raise LostShard(
        f"{url} could not be read in {ATTEMPTS} attempts; the last failed with {reason_of(problem)}. "
        "When the network works, start again: the run resumes from its newest checkpoint."
    ) from problem


def reason_of(error: Exception) -> str:
    """Type and text; errors of time limits often have no text."""
    name, text = type(error).__name__, str(error).strip(" .")
    if text:
        return f"{name}: {text}"
    return f"{name}: no answer in time" if "Timeout" in name else name


def _is_final(error: Exception) -> bool:
    """Whether an error of a file system of fsspec carries an answer that will not change."""
    codes = [getattr(error, name, None) for name in ("code", "status")]
    return any(isinstance(code, int) and 400 <= code < 500 and code not in BUSY for code in codes)


def _wish(error: Exception) -> float:
    """Seconds that the server asks to wait."""
    wish = error.headers["Retry-After"] if isinstance(error, urllib.error.HTTPError) else None
    return min(float(wish), LONGEST_WISH) if wish is not None and wish.isdigit() else 0.0
