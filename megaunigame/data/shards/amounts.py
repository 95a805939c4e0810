"""What the samples of a shard hold, read off its table: pictures from fields, texts from columns or the size of the JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from megaunigame.data.conversation import TALK_KEYS, read_conversation
from megaunigame.data.decode import FURTHER_FIELD, IMAGE_FIELDS, META_FIELD
from megaunigame.data.shards.table import ShardTable
from megaunigame.errors import DataError
from megaunigame.step.amounts import Amounts

CONVERSATION, PAIRS, CAPTION = "conversation_characters", "conversation_pairs", "caption_characters"
TEXT_COLUMNS = (CONVERSATION, PAIRS, CAPTION)
"""Columns that `megaunigame prepare` writes into the index of a shard, for samples that have such a text."""


def text_columns(meta: Mapping[str, Any], pictures: int) -> dict[str, int]:
    """Those of a sample with this JSON and so many images. A text that cannot be read has none: decoding reports it."""
    columns = {}
    talk = next((meta[key] for key in TALK_KEYS if meta.get(key)), None)
    if talk is not None:
        try:
            turns = read_conversation(talk, pictures).asked()
            columns = {CONVERSATION: sum(len(text) for turn in turns for text in turn), PAIRS: len(turns)}
        except DataError:
            pass
    caption = meta.get("caption")
    if isinstance(caption, str) and caption.strip():
        columns[CAPTION] = len(caption)
    return columns


def amounts_of(table: ShardTable) -> Amounts:
    """Of every sample of the table, in its order."""
    unknown = np.full(len(table), np.nan)
    first = np.any([table.has(field) for field in IMAGE_FIELDS], axis=0)
    further = [table.has(field) for field in table.fields if FURTHER_FIELD.fullmatch(field)]
    sizes = np.zeros(len(table), dtype=np.int64)
    if META_FIELD in table.fields:
        sizes = np.where(table.has(META_FIELD), table.spans[:, table.fields.index(META_FIELD), 1], 0)
    return Amounts(
        first.astype(np.int64) + np.sum(further, axis=0, dtype=np.int64),
        sizes,
        conversation=table.columns.get(CONVERSATION, unknown),
        pairs=table.columns.get(PAIRS, unknown),
        caption=table.columns.get(CAPTION, unknown),
        conversation_tokens=unknown,
        caption_tokens=unknown,
    )
