"""The perturber of UniGame (arXiv 2511.19413): a small network that learns where the model is fragile.

    u = MLP(h)                       h (B, N, D): visual tokens
    delta = eps * u / ||u||          every token is moved by exactly eps
    eps = eps_min + (eps_max - eps_min) * sigmoid(gate)

The paper gives the network about 2.1 million parameters at D = 4096, which is a bottleneck of 256.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from megaunigame.adversary.base import Adversary, Budget
from megaunigame.errors import ConfigError
from megaunigame.settings import above, at_least, one_of

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}


class Perturber(Adversary):
    """Learned direction, learned length."""

    adjustable = ("eps_max", "eps_min")

    @dataclass
    class Config(Budget):
        eps_init: float | None = above(0, None)
        """Length at the start (with eps_min = 0), cut to just below eps_max; the gate is set from it. None: half of eps_max."""
        eps_min: float = 0.0
        """Smallest length, at least 0 and below eps_max."""
        hidden: int = at_least(1, 256)
        """Width of the bottleneck."""
        layers: int = at_least(2, 3)
        """Linear layers."""
        activation: str = one_of(ACTIVATIONS, "gelu")
        """Between the layers."""

        def check(self, path: str) -> None:
            if not 0 <= self.eps_min < self.eps_max:
                raise ConfigError(f"{path}.eps_min must lie in [0, eps_max={self.eps_max}); got {self.eps_min}.")

    def __init__(self, config: Config, width: int):
        super().__init__(config, width)
        widths = [width, *[config.hidden] * (config.layers - 1), width]
        layers: list[nn.Module] = []
        for into, out in zip(widths[:-2], widths[1:-1], strict=True):
            layers += [nn.Linear(into, out), ACTIVATIONS[config.activation]()]
        last = nn.Linear(widths[-2], width, bias=False)
        nn.init.orthogonal_(last.weight)
        self.mlp = nn.Sequential(*layers, last)
        fraction = 0.5 if config.eps_init is None else config.eps_init / config.eps_max
        gate = torch.tensor([fraction], dtype=torch.float64).clamp(1e-6, 1 - 1e-6).logit()
        self.gate = nn.Parameter(gate.float())  # shape (1,), as engines expect of parameters

    @property
    def lowest(self) -> float:
        """`eps_min`."""
        return self.config.eps_min

    @property
    def eps(self) -> Tensor:
        """(1,), differentiable with respect to the gate, which has no effect while the length is held."""
        c = self.config
        if self.held is not None:
            return torch.full((1,), self.held, device=self.gate.device)
        return c.eps_min + (c.eps_max - c.eps_min) * self.gate.sigmoid()

    @property
    def opening(self) -> Tensor:
        """(1,): sigmoid(gate), whatever eps_min is."""
        return self.gate.sigmoid()

    def perturb(self, tokens: Tensor, ascend: Callable[[Tensor], Tensor], generator: torch.Generator) -> Tensor:
        return self.scaled(self.mlp(tokens), tokens, self.eps)
