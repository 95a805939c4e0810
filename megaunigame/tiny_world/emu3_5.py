"""Make the start folder of a tiny Emu3.5, with random weights.

    python -m megaunigame.tiny_world.emu3_5 --out runs/tiny_emu3_5/start

The words are those of the shipped tokenizers. The vision tokenizer is not trained: its layers are random, its latents are moved
around 0, and its codebook is made of their directions, so that different pictures have different codes. Codes can be learned;
decoded, they are noise.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from megaunigame.launching import run_to_exit
from megaunigame.models.emu3_5.conversation import BOS, EOS, PAD
from megaunigame.models.emu3_5.folder import config_for, random_state, special_tokens, write_folder
from megaunigame.models.emu3_5.keys import VISION_TOKENIZER
from megaunigame.models.emu3_5.sizes import TINY
from megaunigame.models.emu3_5.vq import VisionTokenizer
from megaunigame.models.shapes import read_shape
from megaunigame.tiny_world.sizes import CODES, IMAGE_SIZE
from megaunigame.tiny_world.start_codes import cells_of_blocks, command, words_and
from megaunigame.tiny_world.start_folder import parameters_per_part


def tokenizer_with_codes() -> PreTrainedTokenizerFast:
    """The words of the tiny world, followed by Emu3.5's special tokens and codes."""
    return words_and(special_tokens(CODES), pad=PAD, bos=BOS, eos=EOS)


def spread_codes(vision: VisionTokenizer, generator: torch.Generator) -> dict[str, Tensor]:
    """The weights of `vision` with a codebook that its latents use evenly.

    A code has the largest dot product: with rows of one length, and latents in all directions from 0, that is the nearest row.
    """
    cells = cells_of_blocks(vision, generator)
    centered = cells - cells.mean(0)
    state = vision.state_dict()
    return state | {
        "quant_conv.bias": state["quant_conv.bias"] - cells.mean(0),
        "quantize.embedding.weight": F.normalize(centered, dim=1) * centered.norm(dim=1).mean(),
    }


def write_start(out: Path, seed: int) -> dict[str, int]:
    """Write the start folder; returns the number of weights per part."""
    tokenizer = tokenizer_with_codes()
    config = config_for(tokenizer, read_shape(TINY))
    state = random_state(config, seed)
    vision = VisionTokenizer(config.vq_config).eval()
    bare = {name.removeprefix(VISION_TOKENIZER): v for name, v in state.items() if name.startswith(VISION_TOKENIZER)}
    vision.load_state_dict(bare)
    spread = spread_codes(vision, torch.Generator().manual_seed(seed))
    state |= {VISION_TOKENIZER + name: value for name, value in spread.items()}
    write_folder(out, config, state, tokenizer, image_size=IMAGE_SIZE, system_prompt="")
    return parameters_per_part(state)


main = command(__doc__, "emu3_5", write_start)

if __name__ == "__main__":
    run_to_exit(main, sys.argv[1:])
