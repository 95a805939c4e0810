"""Makes the beats of this rank from its pulse."""

from __future__ import annotations

import sys
import threading
from types import FrameType

from megaunigame.parallel.beats import Beat
from megaunigame.parallel.home import Home
from megaunigame.parallel.pulse import Pulse

COMMUNICATION = ("/torch/distributed/", "/deepspeed/comm/")
"""Files whose functions wait for other ranks."""
SHORTEST = 1e-3
"""Seconds of a wait that was seen for the first time."""


class Heart:
    """Of this rank. Any thread may ask for a beat."""

    def __init__(self, home: Home, pulse: Pulse):
        self.home, self.pulse = home, pulse
        self.leaves = False
        self._lock = threading.Lock()
        self._number, self._waits, self._marks, self._looked = 0, 0.0, -1, 0.0

    def beat(self) -> Beat:
        with self._lock:
            state, now = self.pulse.look(), self.pulse.clock()
            goes_on = self._waits > 0 and state.marks == self._marks
            if is_waiting():
                self._waits = self._waits + now - self._looked if goes_on else SHORTEST
            else:
                self._waits = 0.0
            self._marks, self._looked, self._number = state.marks, now, self._number + 1
            return Beat(
                rank=self.home.rank,
                host=self.home.host,
                pid=self.home.pid,
                number=self._number,
                step=state.step,
                phase=state.phase,
                in_step=state.in_step,
                marks=state.marks,
                age=state.age,
                waits=self._waits,
                asked=self.pulse.stopping,
                leaves=self.leaves,
            )


def is_waiting() -> bool:
    """Whether some thread of this process is inside a collective.

    Seen from Python: the store has no such frames. On a GPU most collectives are queued, and the host waits for the device
    elsewhere: then False.
    """
    return any(_communicates(frame) for frame in sys._current_frames().values())


def _communicates(frame: FrameType | None) -> bool:
    while frame is not None:
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if any(part in file for part in COMMUNICATION) or (name == "wait" and "/deepspeed/" in file):
            return True
        frame = frame.f_back
    return False
