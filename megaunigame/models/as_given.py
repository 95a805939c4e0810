"""Layers that compute in the precision of what they are given, not of their weights.

Weights are bfloat16, and a bfloat16 keeps eight bits: a perturbation of .02 added to a token of length 64 is mostly rounded
away. A float32 token goes through these layers in float32; a bfloat16 token as before, to the bit. Weights are converted in
the forward, because a partitioned weight is gathered only there; the converted copy lives until the backward.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def compute_as_given(module: nn.Module) -> None:
    """From now on every linear layer, 2-d convolution and layer norm in `module` computes in the precision of its input.

    Names and parameters stay. Raises TypeError if a subclass of these is among them, whose own forward would be lost.
    """
    for name, layer in module.named_modules():
        for plain, given in _GIVEN.items():
            if type(layer) is plain:
                layer.__class__ = given  # in place: a parameter that was partitioned when it was made stays as it is
            elif isinstance(layer, plain) and not isinstance(layer, given):
                raise TypeError(f"{name} is a {type(layer).__name__}, which has its own forward.")


class LinearAsGiven(nn.Linear):
    """nn.Linear in the precision of its input."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = _parameters(self, x)
        assert weight is not None
        return F.linear(x, weight, bias)


class Conv2dAsGiven(nn.Conv2d):
    """nn.Conv2d in the precision of its input."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = _parameters(self, x)
        assert weight is not None
        return self._conv_forward(x, weight, bias)


class LayerNormAsGiven(nn.LayerNorm):
    """nn.LayerNorm in the precision of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, *_parameters(self, x), self.eps)


_GIVEN: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: LinearAsGiven,
    nn.Conv2d: Conv2dAsGiven,
    nn.LayerNorm: LayerNormAsGiven,
}


def _parameters(layer: nn.Linear | nn.Conv2d | nn.LayerNorm, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias in the dtype of x; a layer norm may have neither."""
    weight: Tensor | None = layer.weight
    bias: Tensor | None = layer.bias
    return None if weight is None else weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
