"""Waits for the disks of all ranks: as long as bytes move on one of them, no rank is taken for stuck."""

from __future__ import annotations

import logging
import time
from typing import Protocol

import torch

from megaunigame.parallel.pulse import PULSE
from megaunigame.parallel.ranks import Ranks

QUIET_SECONDS = 60.0
"""Between two lines that say who is still at work."""
SHORTEST, LONGEST = 0.02, 1.0
"""Seconds between two looks: the first, and from the seventh on."""
SHOWN = 4
"""Ranks."""
log = logging.getLogger(__name__)


class Work(Protocol):
    """What a thread of this rank does with files."""

    @property
    def ended(self) -> bool: ...

    @property
    def moved(self) -> int:
        """Bytes read or written so far."""

    def wait(self, seconds: float | None = None) -> None:
        """Until it has ended; at most `seconds`."""


def wait_for_all(world: Ranks, work: Work, what: str) -> None:
    """Collective: returns when the work of every rank has ended. `what`: for messages, such as "writing step 5".

    Many short collectives instead of a long one, which would end a healthy run at its limit. While no byte moves on any rank
    the pulse is not marked, so the watch sees a disk that hangs.
    """
    moved, pause, said = -1, SHORTEST, time.monotonic()
    while True:
        own = torch.tensor([work.moved, not work.ended], dtype=torch.int64)  # on the host: no wait for the device
        everywhere = world.all_gather(own)
        total, busy = int(everywhere[:, 0].sum()), everywhere[:, 1].nonzero().flatten().tolist()
        if not busy:
            return
        if total != moved:
            moved = total
            PULSE.mark()  # on all ranks or on none: they have the same numbers
        if world.is_main and time.monotonic() - said > QUIET_SECONDS:
            said = time.monotonic()
            log.warning("%s: %s still at work, %.1f GB done on all ranks.", what, _names(busy), total / 1e9)
        work.wait(pause)
        pause = min(2 * pause, LONGEST)


def _names(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:SHOWN])) + (f" and {len(ranks) - SHOWN} more" if len(ranks) > SHOWN else "")
    return f"rank {shown} is" if len(ranks) == 1 else f"ranks {shown} are"
