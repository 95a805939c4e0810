"""Pictures of a pass as bytes, and how the values that the model reads come from them.

Loader workers send bytes: a quarter of the memory that is shared between processes, pinned and copied to the device.
`PassInputs.to` makes the values, once, on the device. What comes after it knows values alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Levels:
    """value = byte * scale + shift, per channel, and 0 at places without a picture."""

    scale: Tensor
    """(3, 1, 1) float32."""
    shift: Tensor
    """(3, 1, 1) float32."""
    given: Tensor
    """(B,) or (B, I) bool, as the pictures: False where there is none."""

    def values(self, pictures: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) or (B, I, 3, H, W) -> float32 of this shape, on the same device."""
        given = self.given.view(*self.given.shape, 1, 1, 1)
        # Not by a mask afterwards: that is another pass over all values.
        return torch.addcmul(self.shift * given, pictures.float(), self.scale * given)

    def to(self, device: torch.device) -> Levels:
        return Levels(*(each.to(device, non_blocking=True) for each in (self.scale, self.shift, self.given)))
