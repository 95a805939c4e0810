"""Whether the autoencoder in a checkpoint is the one of a configuration, in the words of the configuration.

Shapes of all tensors are compared anyway (`check_shapes`): this names the setting. The scale of latents is in no checkpoint, so
it is compared where it is known, for the sizes that are published.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from megaunigame.errors import ModelError
from megaunigame.models.base import Weights
from megaunigame.models.weights.settings_files import is_number
from megaunigame.storage.foreign_text import quoted

VQGAN_LEVELS = "encoder.down."
"""Beginning of the names of an encoder's levels in the layout of VQGAN; a number follows."""


def check_latents(
    weights: Weights, prefix: str, level: str, channels: tuple[str, int], levels: tuple[str, int], where: str
) -> None:
    """Raises ModelError for an autoencoder with other latents than the configuration says.

    `prefix`: of the autoencoder's names in `weights`; `level`: what those of its encoder's levels go on with. `channels` and
    `levels`: a setting, and the number of latent channels and of resolutions that follows from it. `where`: the model folder.
    A checkpoint without these tensors is left to `check_names`.
    """
    names, first = weights.names(), f"{prefix}decoder.conv_in.weight"
    numbers = [int(match[1]) for name in names if (match := re.match(re.escape(prefix + level) + r"(\d+)\.", name))]
    found = {
        "latent channels": (*channels, weights.shape(first)[1:2].numel() if first in names else 0),
        "resolutions": (*levels, 1 + max(numbers, default=-1)),
    }
    for what, (setting, wanted, stored) in found.items():
        if stored and stored != wanted:
            raise ModelError(
                f"{setting} in {where} means an autoencoder of {wanted} {what}, and the one there has {stored}. Take the "
                "autoencoder of this model, or the configuration of that one."
            )


def check_scale(part: str, given: Mapping[str, Any], released: Mapping[str, Any], scale: str, shift: str = "") -> None:
    """Raises ModelError for a scale or shift that is not a number, and for one that is not released for these sizes.

    Autoencoders of the same sizes have latents of different scales, and no tensor shows it: with that of another one a
    model trains and draws noise.
    """
    names = [name for name in (scale, shift) if name]
    for name in names:
        value = given[name]
        if not is_number(value) or (name == scale and value <= 0):
            legal = "a number above 0" if name == scale else "a number"
            raise ModelError(f"{part}.{name}={quoted(value)} must be {legal}, such as the released {released[name]:g}.")
    same_sizes = all(given.get(name) == value for name, value in released.items() if name not in names)
    for name in names:
        if same_sizes and given[name] != released[name]:
            raise ModelError(
                f"{part}.{name}={given[name]:g}, and an autoencoder of these sizes was released for this model with "
                f"{released[name]:g}. The number of another autoencoder gives latents of a wrong scale, and nothing would show "
                f"it. Write {part}.{name}={released[name]:g}."
            )
