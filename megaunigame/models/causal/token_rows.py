"""Neutral rows -> the tensors of the two passes, for families whose codes are tokens of the vocabulary."""

from __future__ import annotations

from megaunigame.models.causal.token_format import TokenFormat
from megaunigame.models.text.processor import HALF, RowProcessor


class TokenRows(RowProcessor):
    """Square pictures of one size per path; the loss of a generate row is on its codes.

    Sources go through the tokenizer of the targets, so preprocessor_config.json does not apply to them.
    """

    format: TokenFormat

    def __init__(self, conversation: TokenFormat, *, max_length: int):
        super().__init__(
            conversation.tokenizer,
            conversation,
            image_size=conversation.squares.image_size,
            source_size=conversation.squares.source_size,
            after_prompt=conversation.after_prompt,
            loss_positions=conversation.grid.count,
            max_length=max_length,
            mean=HALF,
            std=HALF,
        )
