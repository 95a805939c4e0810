"""Tars that other tools wrote, given to a run as they are: what it would not read in them, and the command that packs them."""

from __future__ import annotations

import logging
import shlex
from collections import Counter
from collections.abc import Collection, Mapping

from megaunigame.data.decode import DECODERS, FURTHER_FIELD, META_FIELD
from megaunigame.errors import DataError
from megaunigame.storage.foreign_text import one_line

SHOWN = 8
FIRST_SAMPLES = 100

log = logging.getLogger(__name__)


def pack_command(source: object) -> str:
    """What makes shards of tars that another tool wrote."""
    name = str(source).rstrip("/")
    if name.startswith("pipe:") or "://" in name:
        name = "FOLDER"  # of the tars, once they are here
    return f"megaunigame prepare pack --format wds --source {shlex.quote(name)} --out {shlex.quote(_packed_name(name))}"


def check_foreign(location: str, samples: int, fields: Mapping[str, int]) -> None:
    """Raises DataError when no sample has a json; warns of samples without one, and of fields that a run does not read.

    `fields` counts the samples that have each.
    """
    described = fields[META_FIELD] if META_FIELD in fields else 0
    names = sorted(fields)
    if samples and not described:
        some = one_line(", ".join(names[:SHOWN]))
        raise DataError(
            f"{location}: none of its {samples} samples has a json, which holds captions and conversations; their fields are "
            f"{some}{', ...' if len(names) > SHOWN else ''}. Give them as `source` instead of `shards`, or "
            f"pack them and train on the packed folder: {pack_command(location)}"
        )
    read = {META_FIELD, *(field for stored_as, _ in DECODERS.values() for field in stored_as)}
    unread = [name for name in names if name not in read and not FURTHER_FIELD.fullmatch(name)]
    if described < samples:
        log.warning("%s: %d of %d samples have no json and will be replaced.", location, samples - described, samples)
    if unread or described < samples:
        listed = ", ".join(f"{name} ({fields[name]} samples)" for name in unread[:SHOWN])
        log.warning(
            "%s: a run does not read the fields %s. If texts or pictures are in them, pack the tars: %s",
            location,
            one_line(listed or "none") + (f" and {len(unread) - SHOWN} more" if len(unread) > SHOWN else ""),
            pack_command(location),
        )


class FirstSamples:
    """The fields of the first samples of a reader without an index, and one warning of what a run does not read of them."""

    def __init__(self, location: str):
        self.location = location
        self._samples = 0
        self._fields: Counter[str] = Counter()
        self._checked = False

    def add(self, fields: Collection[str]) -> None:
        """The names of the fields of one sample. The check follows when there are enough."""
        if self._checked:
            return
        self._samples += 1
        self._fields.update(fields)
        if self._samples >= FIRST_SAMPLES:
            self.check()

    def check(self) -> None:
        """Warn as `check_foreign` does. Where no sample has a json, each is refused with the cause instead."""
        if self._checked or not self._fields[META_FIELD]:
            return
        self._checked = True
        check_foreign(self.location, self._samples, self._fields)


def _packed_name(source: str) -> str:
    beginning = source.partition("*")[0].partition("{")[0].rstrip("/").removesuffix(".tar")
    return f"{beginning or 'shards'}-packed"
