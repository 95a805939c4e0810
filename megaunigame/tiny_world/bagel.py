"""Make the start folder of a tiny BAGEL, with random weights.

    python -m megaunigame.tiny_world.bagel --out runs/tiny_bagel/start

The words are those of the shipped tokenizers. The autoencoder is not trained: its layers are random, but its posterior is
narrow, and the scale and the shift of its latents are such that they have mean 0 and variance 1. Latents can be learned;
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
from megaunigame.models.bagel.autoencoder import Autoencoder
from megaunigame.models.bagel.configuration import BagelConfig
from megaunigame.models.bagel.conversation import BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE, PAD, TEXT_END, TEXT_START
from megaunigame.models.bagel.folder import config_for, random_state, write_folder
from megaunigame.models.bagel.keys import AUTOENCODER
from megaunigame.models.bagel.sizes import TINY
from megaunigame.models.shapes import read_shape
from megaunigame.models.weights.settings_files import read_tokenizer
from megaunigame.tiny_world.sizes import IMAGE_SIZE
from megaunigame.tiny_world.start_codes import WORDS, command
from megaunigame.tiny_world.start_folder import parameters_per_part

PICTURES, BLOCKS = 64, 2
LOG_VARIANCE = -20.0
"""Of the posterior. That of random layers is about 0: latents of a training would be mostly noise."""


def tokenizer_of_words() -> PreTrainedTokenizerFast:
    """The words of the tiny world, followed by Qwen's special tokens."""
    tokenizer = read_tokenizer(WORDS)
    more = [TEXT_START, BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE]
    tokenizer.add_special_tokens({"pad_token": PAD, "eos_token": TEXT_END, "additional_special_tokens": more})
    return tokenizer


@torch.no_grad()
def moments(config: BagelConfig, state: dict[str, Tensor], generator: torch.Generator) -> tuple[float, float]:
    """Mean and standard deviation of the latents of pictures of four random colors, not scaled."""
    coder = Autoencoder(*config.autoencoder_sizes(), 1.0, 0.0).eval()
    coder.load_state_dict({n.removeprefix(AUTOENCODER): v for n, v in state.items() if n.startswith(AUTOENCODER)})
    blocks = torch.rand(PICTURES, 3, BLOCKS, BLOCKS, generator=generator) * 2 - 1
    latents = coder.encode(F.interpolate(blocks, (IMAGE_SIZE, IMAGE_SIZE), mode="nearest"))
    return float(latents.mean()), float(latents.std())


def write_start(out: Path, seed: int) -> dict[str, int]:
    """Write the start folder; returns the number of weights per part."""
    tokenizer = tokenizer_of_words()
    config = config_for(tokenizer, read_shape(TINY))
    state = random_state(config, seed)
    for kind, value in (("weight", 0.0), ("bias", LOG_VARIANCE)):
        state[f"{AUTOENCODER}encoder.conv_out.{kind}"][config.vae["channels"] :] = value
    shift, deviation = moments(config, state, torch.Generator().manual_seed(seed))
    config.vae |= {"scale": 1 / deviation, "shift": shift}
    write_folder(out, config, state, tokenizer)
    return parameters_per_part(state)


main = command(__doc__, "bagel", write_start)

if __name__ == "__main__":
    run_to_exit(main, sys.argv[1:])
