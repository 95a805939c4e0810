"""The second and later pictures of a sample: fields `picture2.jpg`, `picture3.png`, ... of the shard."""

from __future__ import annotations

from collections.abc import Sequence

from data_prep.inputs.sample import packed
from data_prep.shard_writer import ShardSample


def with_further(sample: ShardSample, pictures: Sequence[bytes]) -> ShardSample:
    """The sample, and these pictures as `packed` stores the first one. Raises EntryFailure for one that cannot be decoded.

    Names are split at their first dot, so these fields cannot be part of another sample whose name has dots.
    """
    for number, picture in enumerate(pictures, start=2):
        stored = packed("", {}, picture)
        sample |= {f"picture{number}.{field}": data for field, data in stored.items() if field not in ("__key__", "json")}
    return sample
