"""Samples of several pictures: the later ones are the fields `picture2.jpg`, `picture3.png`, ... of the shard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megaunigame.pictures.rules import PictureRules

from ..shard_writer import ShardSample
from .sample import packed


def packed_all(key: str, record: dict[str, Any], pictures: Sequence[bytes], rules: PictureRules) -> ShardSample:
    """`packed` with any number of pictures, all stored by the same rules.

    Names are split at their first dot, so these fields cannot be part of another sample whose name has dots.
    Raises EntryFailure for a picture that cannot be decoded.
    """
    sample = packed(key, record, pictures[0] if pictures else None, rules)
    for number, picture in enumerate(pictures[1:], start=2):
        stored = packed("", {}, picture, rules)
        sample |= {f"picture{number}.{field}": data for field, data in stored.items() if field not in ("__key__", "json")}
    return sample
