"""Which positions of a row attend across modalities, and to which: the sets of attention interaction (arXiv 2511.22663).

Sets are (B, S) bool over the positions of `PassInputs.tokens`. The generated picture comes after them, at positions that
only the family knows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megaunigame.step.inputs import PassInputs, Taps
from megaunigame.step.requests import UNDERSTAND


def image_tokens(inputs: PassInputs, taps: Taps) -> Tensor:
    """(B, S): keys of the understand pass."""
    if not taps.compat:
        return inputs.image_positions
    return torch.cat([inputs.image_positions[:, 1:], torch.zeros_like(inputs.image_positions[:, :1])], dim=1)


def prompt_text(inputs: PassInputs, taps: Taps) -> Tensor:
    """(B, S): keys of the generate pass: text tokens before the generated picture, without the source picture."""
    text = inputs.attention & ~inputs.image_positions
    if taps.exclude_bos:
        text &= ~first_token(inputs.attention)
    if taps.compat:
        text[:, -1] = False  # prompts are padded in front
    return text


def first_token(attention: Tensor) -> Tensor:
    """(B, S): the first position of each row that is not padding."""
    return attention & (attention.long().cumsum(1) == 1)


def measurable(inputs: PassInputs, taps: Taps) -> Tensor:
    """(B,) bool: rows with queries and keys whose text was not cut and whose condition was not dropped."""
    keys = image_tokens(inputs, taps) if inputs.pass_name == UNDERSTAND else prompt_text(inputs, taps)
    usable = (inputs.counts > 0) & keys.any(1)
    return usable if inputs.intact is None else usable & inputs.intact
