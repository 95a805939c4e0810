"""What positions of Show-o see beyond causal attention (its omni-attention); pairs (q, k) for `causal.masks`.

understand   every position sees the pictures, which come first, with all of their prefix
generate     the picture that is drawn, from its begin to its end token, sees all; a source picture sees itself
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def open_prefix(image: Tensor) -> Tensor:
    """(B, S) positions of visual tokens -> (B, 1, S): all up to the end token of the last picture, for every position."""
    up_to_last = image.flip(1).cummax(1).values.flip(1)
    return _and_next(up_to_last).unsqueeze(1)


def open_picture(image: Tensor, after: int) -> Tensor:
    """(B, P) positions of visual tokens in requests -> (B, P + after, P + after): a source picture with its begin and end token
    sees itself; the last token of the request and the `after` positions that follow it see all."""
    block = F.pad(_and_next(image) | _and_next(image.flip(1)).flip(1), (0, after))
    order = torch.arange(block.shape[1], device=image.device)
    drawn = order >= image.shape[1] - 1
    return (block.unsqueeze(2) & block.unsqueeze(1)) | drawn.unsqueeze(1)


def _and_next(positions: Tensor) -> Tensor:
    """(B, S) bool: also the position after each."""
    return positions | F.pad(positions[:, :-1], (1, 0))
