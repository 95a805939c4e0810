"""Parts of the start folders of families of codes: a tokenizer of words and codes, latents that a codebook is made of, and the
command that writes a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from megaunigame.launching import options_of
from megaunigame.models.vqgan.code_tokenizer import CodeEncoder
from megaunigame.models.weights.settings_files import read_tokenizer
from megaunigame.tiny_world.sizes import CODES, IMAGE_SIZE

WORDS = Path(__file__).parent / "weights" / "openuni"
PICTURES, BLOCKS = 64, 8


def words_and(special: Sequence[str], *, pad: str, bos: str | None, eos: str) -> PreTrainedTokenizerFast:
    """The words of the tiny world, followed by the `special` tokens of a family, its codes among them."""
    tokenizer = read_tokenizer(WORDS)
    named = {"pad_token": pad, "eos_token": eos} | ({"bos_token": bos} if bos else {})
    tokenizer.add_special_tokens({**named, "additional_special_tokens": list(special)})
    return tokenizer


@torch.no_grad()
def cells_of_blocks(tokenizer: CodeEncoder, generator: torch.Generator) -> Tensor:
    """(CODES, C): latents of cells drawn from pictures of random blocks."""
    blocks = torch.rand(PICTURES, 3, BLOCKS, BLOCKS, generator=generator) * 2 - 1
    latents = tokenizer.latents(F.interpolate(blocks, (IMAGE_SIZE, IMAGE_SIZE), mode="nearest"))
    cells = latents.permute(0, 2, 3, 1).flatten(0, 2)
    return cells[torch.randperm(len(cells), generator=generator)[:CODES]]


def command(described: str, family: str, write_start: Callable[[Path, int], dict[str, int]]) -> Callable[[list[str]], None]:
    """The command that writes a start folder; `write_start(out, seed)` returns the number of weights per part."""

    def main(arguments: list[str]) -> None:
        parser = options_of(described, f"python -m megaunigame.tiny_world.{family}")
        parser.add_argument("--out", type=Path, required=True, help="the start folder to write")
        parser.add_argument("--seed", type=int, default=0)
        options = parser.parse_args(arguments)
        print(f"{options.out}: {json.dumps(write_start(options.out, options.seed))}")

    return main
