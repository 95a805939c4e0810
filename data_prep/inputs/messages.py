"""Conversations as cells of a table hold them."""

from __future__ import annotations

import json
from typing import Any

from megaunigame.storage.untrusted_json import is_deeper_than

from .sample import EntryFailure


def turns_of(value: Any) -> Any:
    """A list of turns, out of that, its JSON text, or one list per key of the turns; anything else as it is.

    What a turn may be says `megaunigame.data.conversation`. Raises EntryFailure for a text that is not JSON,
    and for lists of different lengths.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise EntryFailure(f"has conversations that are not JSON: {error}") from error
    if is_deeper_than(value):
        raise EntryFailure("is nested too deeply")
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        # Hugging Face stores a sequence of records as a record of sequences.
        if len({len(column) for column in value.values()}) > 1:
            lengths = ", ".join(f"{len(column)} {name}" for name, column in value.items())
            raise EntryFailure(f"has conversations as lists of different lengths ({lengths}); which belong together?")
        return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    return value
