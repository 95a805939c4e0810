"""A codebook for an image tokenizer of random layers: different pictures get different codes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from megaunigame.models.vqgan.code_tokenizer import CodeTokenizer
from megaunigame.tiny_world.sizes import CODES, IMAGE_SIZE

PICTURES, BLOCKS = 64, 8


def spread_codebook(tokenizer: CodeTokenizer, generator: torch.Generator) -> Tensor:
    """(V, C): latents of cells drawn from pictures of random blocks."""
    blocks = torch.rand(PICTURES, 3, BLOCKS, BLOCKS, generator=generator) * 2 - 1
    with torch.no_grad():
        latents = tokenizer.latents(F.interpolate(blocks, (IMAGE_SIZE, IMAGE_SIZE), mode="nearest"))
    cells = latents.permute(0, 2, 3, 1).flatten(0, 2)
    return cells[torch.randperm(len(cells), generator=generator)[:CODES]]
