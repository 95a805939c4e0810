"""Make the start folder of a tiny Show-o, with random weights.

    python -m megaunigame.tiny_world.show_o --out runs/tiny_show_o/start

The words are those of the shipped tokenizers. The vision tokenizer is not trained: its layers are random, and only the bias of
the last one of its encoder is made such that every bit is set in half of the cells. Codes can be learned; decoded, they are
noise.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from megaunigame.launching import run_to_exit
from megaunigame.models.shapes import read_shape
from megaunigame.models.show_o.conversation import END, add_special_tokens
from megaunigame.models.show_o.folder import config_for, random_state, write_folder
from megaunigame.models.show_o.keys import VISION_TOKENIZER
from megaunigame.models.show_o.sizes import TINY
from megaunigame.models.show_o.vq import Magvit
from megaunigame.models.weights.settings_files import read_tokenizer
from megaunigame.tiny_world.sizes import IMAGE_SIZE
from megaunigame.tiny_world.start_codes import command
from megaunigame.tiny_world.start_folder import parameters_per_part

WORDS = Path(__file__).parent / "weights" / "openuni"
LAST = "encoder.quant_conv.bias"
PICTURES, BLOCKS = 64, 8


def tokenizer_of_words() -> PreTrainedTokenizerFast:
    """The words of the tiny world, followed by Show-o's special tokens."""
    tokenizer = read_tokenizer(WORDS)
    tokenizer.add_special_tokens({"bos_token": END, "eos_token": END})
    add_special_tokens(tokenizer, len(tokenizer), str(WORDS))
    return tokenizer


def bias_of_medians(tokenizer: Magvit, generator: torch.Generator) -> Tensor:
    """(C,): bias of the encoder's last layer with which the latents of pictures of random blocks have medians 0."""
    blocks = torch.rand(PICTURES, 3, BLOCKS, BLOCKS, generator=generator) * 2 - 1
    with torch.no_grad():
        latents = tokenizer.latents(F.interpolate(blocks, (IMAGE_SIZE, IMAGE_SIZE), mode="nearest"))
    return tokenizer.encoder.quant_conv.bias - latents.permute(0, 2, 3, 1).flatten(0, 2).median(0).values


def write_start(out: Path, seed: int) -> dict[str, int]:
    """Write the start folder; returns the number of weights per part."""
    tokenizer = tokenizer_of_words()
    config = config_for(tokenizer, read_shape(TINY))
    state = random_state(config, seed)
    vision = Magvit(*config.tokenizer_sizes()).eval()
    prefix = VISION_TOKENIZER
    vision.load_state_dict({name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)})
    state[prefix + LAST] = bias_of_medians(vision, torch.Generator().manual_seed(seed))
    write_folder(out, config, state, tokenizer)
    return parameters_per_part(state)


main = command(__doc__, "show_o", write_start)

if __name__ == "__main__":
    run_to_exit(main, sys.argv[1:])
