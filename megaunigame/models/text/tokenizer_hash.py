"""Names a tokenizer by all that decides which tokens a text becomes."""

from __future__ import annotations

import hashlib
import json

from transformers import PreTrainedTokenizerFast

from megaunigame.step.amounts import TOKENIZER_DIGITS

OF_A_CALL = ("padding", "truncation")
"""What the last call left in the tokenizer: not a part of it."""


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """16 hexadecimal digits: vocabulary, merges, added tokens and rules of the tokenizer."""
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = {name: value for name, value in settings.items() if name not in OF_A_CALL}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:TOKENIZER_DIGITS]
