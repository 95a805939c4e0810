"""One direction for all tokens of all pictures, trained (arXiv 1610.08401)."""

from dataclasses import dataclass

import torch
from torch import nn

from megaunigame.adversary.base import Adversary, Budget


class Universal(Adversary):
    @dataclass
    class Config(Budget):
        pass

    def __init__(self, config, width):
        super().__init__(config, width)
        self.direction = nn.Parameter(torch.randn(width))

    def perturb(self, tokens, ascend, generator):
        return self.scaled(self.direction.expand_as(tokens), tokens, self.config.eps_max)
