"""The modules of diffusers that families share: SANA's transformer and the deep-compression autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.initialization import no_init_weights

from megaunigame.errors import ModelError
from megaunigame.models.as_given import compute_as_given
from megaunigame.models.weights.settings_files import is_number
from megaunigame.storage.foreign_text import one_line, quoted

if TYPE_CHECKING:
    from diffusers import AutoencoderDC, SanaTransformer2DModel


def diffusers_class(name: str) -> Any:
    """A class of diffusers, which not every family needs. Raises ModelError when it is not installed."""
    try:
        import diffusers
    except ImportError as error:
        raise ModelError("This family needs the package diffusers; type: pip install 'megaunigame[diffusion]'") from error
    return getattr(diffusers, name)


def _built(name: str, settings: Mapping[str, Any]) -> Any:
    """A module of diffusers, its weights not initialized. Raises ModelError for settings that it cannot be built of."""
    kind = diffusers_class(name)
    try:
        with no_init_weights():
            return kind(**settings)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # diffusers checks little of what it is given
        raise ModelError(
            f"diffusers cannot build {name} of its settings in config.json ({type(error).__name__}: {one_line(error)}). Copy "
            "them from its release."
        ) from error


def sana(settings: Mapping[str, Any]) -> SanaTransformer2DModel:
    """SANA's transformer, its weights not initialized; it computes in the precision of its input."""
    transformer = _built("SanaTransformer2DModel", settings)
    compute_as_given(transformer)
    normalize_as_given(transformer)
    return transformer  # type: ignore[no-any-return]


def autoencoder(settings: Mapping[str, Any]) -> AutoencoderDC:
    """The deep-compression autoencoder, its weights not initialized."""
    return _built("AutoencoderDC", settings)  # type: ignore[no-any-return]


def rms_norm(width: int, epsilon: float) -> nn.Module:
    """diffusers' RMSNorm with a weight."""
    diffusers_class("AutoencoderDC")  # for the message where it is not installed
    from diffusers.models.normalization import RMSNorm

    return RMSNorm(width, eps=epsilon, elementwise_affine=True)


def downsampling(settings: Mapping[str, Any]) -> int:
    """Pixels of one latent cell of an autoencoder along an edge."""
    return 2 ** (len(settings["encoder_block_out_channels"]) - 1)


def check_fit(transformer: Mapping[str, Any], autoencoder: Mapping[str, Any], image_size: int) -> None:
    """Raises ModelError for a transformer that reads no latents of the autoencoder, for a side that it cannot divide, and for
    numbers that no module has."""
    for name, value in transformer.items():
        if isinstance(value, int | float) and not value >= 0:
            raise ModelError(f"The transformer's {name} must not be negative; got {value!r}.")
    scale = autoencoder.get("scaling_factor", 1.0)
    if not is_number(scale) or scale <= 0:
        raise ModelError(f"The autoencoder's scaling_factor must be a number above 0; got {quoted(scale)}.")
    if not isinstance(autoencoder.get("encoder_block_out_channels"), list):
        raise ModelError("The autoencoder's encoder_block_out_channels must be a list of whole numbers.")
    cell = downsampling(autoencoder)
    if image_size % cell:
        raise ModelError(f"image_size={image_size} is not a multiple of {cell}, by which the autoencoder divides it.")
    if transformer["in_channels"] != autoencoder["latent_channels"]:
        raise ModelError(
            f"The transformer reads {transformer['in_channels']} channels and the autoencoder has "
            f"{autoencoder['latent_channels']}; give transformer and autoencoder of one release."
        )


def normalize_as_given(module: nn.Module) -> None:
    """diffusers' RMSNorm rounds to the precision of its weights; from now on it keeps that of its input."""
    from diffusers.models.normalization import RMSNorm

    class RMSNormAsGiven(RMSNorm):
        def forward(self, hidden_states: Tensor) -> Tensor:
            if self.weight is None or hidden_states.dtype == self.weight.dtype:
                return super().forward(hidden_states)
            scale = torch.rsqrt(hidden_states.float().square().mean(-1, keepdim=True) + self.eps)
            normal = hidden_states * scale * self.weight
            return (normal if self.bias is None else normal + self.bias).to(hidden_states.dtype)

    for layer in module.modules():
        if type(layer) is RMSNorm:
            layer.__class__ = RMSNormAsGiven
