"""Asks a server again, later and later, where that may help."""

from __future__ import annotations

import errno
import logging
import time
import urllib.error
from collections.abc import Callable
from typing import TypeVar

from megaunigame.data.shards.http import BUSY
from megaunigame.data.shards.urls import FinalError, GoneError, reason_of, shown
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
    """Do the work; again with exponential backoff after what may pass.

    Raises LostShard, with the reason and what helps, when the file is not there or its server does not give it now; DataError
    when it is another one, when the server refuses it, or does what no server has a reason for: that does not pass by waiting,
    and other shards must not take the place of this one.
    """
    others, url = 0, shown(url)
    for number in range(1, ATTEMPTS + 1):
        try:
            return work()
        except UserError:
            raise
        except GoneError as error:
            raise LostShard(f"{url} {error}.") from error
        except FinalError as error:
            raise DataError(f"{url} {error}.") from error
        except FileNotFoundError as error:
            raise LostShard(f"{url} is not there ({reason_of(error)}).") from error
        except PermissionError as error:
            raise DataError(f"{url} may not be read ({reason_of(error)}). Check who may read it.") from error
        except OtherContentError as error:
            others += 1
            problem: Exception = error
            if others == ATTEMPTS_AT_CONTENT:
                raise DataError(f"{url} {error}. Upload the folder again, dataset.json last.") from error
        except Exception as error:  # every file system of fsspec has other error types
            problem = error
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DataError(
                    f"{url} does not fit on the disk of the cache ({shown(str(error))}). Make room, or type a lower "
                    "cache.gigabytes."
                ) from error
            code = _final_code(error)
            if code is not None:
                kind = LostShard if code in (404, 410) else DataError
                raise kind(f"{url}: {reason_of(error)}. Asking again does not help: check who may read it.") from error
        if number < ATTEMPTS:
            pause = max(first_pause * 2 ** (number - 1), _wish(problem))
            log.warning("%s: %s. Trying again in %.0f s.", url, reason_of(problem), pause)
            time.sleep(pause)
    raise LostShard(
        f"{url} could not be read in {ATTEMPTS} attempts; the last failed with {reason_of(problem)}. "
        "When the network works, start again: the run resumes from its newest checkpoint."
    ) from problem


def _final_code(error: Exception) -> int | None:
    """The answer that an error of a file system of fsspec carries, if it will not change."""
    codes = [getattr(error, name, None) for name in ("code", "status")]
    return next((code for code in codes if isinstance(code, int) and 400 <= code < 500 and code not in BUSY), None)


def _wish(error: Exception) -> float:
    """Seconds that the server asks to wait."""
    wish = error.headers["Retry-After"] if isinstance(error, urllib.error.HTTPError) else None
    return min(float(wish), LONGEST_WISH) if wish is not None and wish.isascii() and wish.isdecimal() else 0.0
