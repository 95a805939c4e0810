"""The trackers of a run, on rank 0: what is logged once goes to each of them.

The ids of their runs are kept in `trackers.json` of the run folder, so that a resumed run goes on in the same ones. What a
tracker keeps of a killed launch is not sent to it a second time: there, the steps after the checkpoint stay those of that
launch.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from megaunigame.errors import ConfigError, DataError
from megaunigame.monitoring.trackers.base import RunFacts, TrackedPicture, Tracker
from megaunigame.monitoring.trackers.delivery import Delivery
from megaunigame.registry import find
from megaunigame.storage.json_files import read_object
from megaunigame.storage.whole_files import write_whole

ROOM = "monitoring.trackers"
IDS_FILE = "trackers.json"
log = logging.getLogger(__name__)


def check_trackers(trackers: Sequence[str]) -> None:
    """Raises ConfigError for a name that no file of this folder has, and for a package that is not installed."""
    for name in trackers:
        try:
            package = find(ROOM, name, Tracker).package
        except ConfigError as error:
            raise ConfigError(f"monitor.trackers: {error}") from error
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"monitor.trackers names {name}, and the package {package} is not installed. Type "
                f"pip install 'megaunigame[trackers]', or take {name} out of monitor.trackers."
            )


class Trackers:
    """All trackers of one launch."""

    def __init__(self, trackers: Sequence[str], folder: Path, run: RunFacts, *, first_step: int, logged: Mapping[str, int]):
        """`first_step`: of this launch. `logged`: metric -> last step that an earlier launch has logged."""
        self.logged = logged if first_step > 1 else {}
        self.last_logged = max(self.logged.values(), default=-1)
        self.file = folder / IDS_FILE
        self._lock = threading.Lock()
        self._ids = self._earlier() if first_step > 1 else {}
        self.deliveries: list[Delivery] = []
        for name in trackers:
            try:
                tracker = find(ROOM, name, Tracker)(folder, run, first_step)
            except Exception as error:  # of a foreign package that cannot be imported or set up
                log.warning("No %s: %s: %s. All metrics are in metrics.jsonl.", name, type(error).__name__, error)
                continue
            self.deliveries.append(Delivery(name, tracker, self._ids.get(name, ""), partial(self._keep, name)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics of a step."""
        fresh = {name: value for name, value in values.items() if step > self.logged.get(name, -1)}
        for delivery in self.deliveries:
            sent = dict(values) if delivery.tracker.forgets else fresh
            if sent:
                delivery.call(partial(delivery.tracker.scalars, step, sent))

    def pictures(self, step: int, pictures: Sequence[TrackedPicture]) -> None:
        """Pictures of a step."""
        if pictures:
            self._each(step, lambda tracker: partial(tracker.pictures, step, list(pictures)))

    def text(self, step: int, name: str, markdown: str) -> None:
        """A text of a step."""
        self._each(step, lambda tracker: partial(tracker.text, step, name, markdown))

    def _each(self, step: int, call_of: Callable[[Tracker], Callable[[], None]]) -> None:
        for delivery in self.deliveries:
            if delivery.tracker.forgets or step > self.last_logged:
                delivery.call(call_of(delivery.tracker))

    def close(self, complete: bool) -> list[str]:
        """Flush them; returns lines about what did not arrive."""
        return [line for delivery in self.deliveries if (line := delivery.close(complete))]

    def _keep(self, name: str, id: str) -> None:
        """From the thread of a tracker. Raises OSError."""
        with self._lock:
            self._ids[name] = id
            write_whole(self.file, json.dumps(self._ids, indent=1))

    def _earlier(self) -> dict[str, Any]:
        if not self.file.exists():
            return {}
        try:
            found = read_object(self.file, "the ids of trackers", DataError, "They begin new runs.")
        except DataError as error:
            log.warning("%s", error)
            return {}
        return {name: id for name, id in found.items() if isinstance(id, str)}
