"""Make the start folder of a tiny Harmon, with random weights.

    python -m megaunigame.tiny_world.harmon --out runs/tiny_harmon/start

The words are those of the shipped tokenizers. The autoencoder is not trained: its layers are random, and only the last one of
its encoder and the scaling factor are made such that latents have mean 0 and deviation 1. Latents can be learned; decoded, they
are noise.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from megaunigame.launching import run_to_exit
from megaunigame.models.harmon.autoencoder import Autoencoder
from megaunigame.models.harmon.conversation import IMAGE
from megaunigame.models.harmon.folder import config_for, random_state, write_folder
from megaunigame.models.harmon.keys import AUTOENCODER
from megaunigame.models.harmon.parts import autoencoder
from megaunigame.models.harmon.sizes import TINY
from megaunigame.models.shapes import read_shape
from megaunigame.models.weights.settings_files import read_tokenizer
from megaunigame.tiny_world.sizes import IMAGE_SIZE
from megaunigame.tiny_world.start_codes import BLOCKS, PICTURES, WORDS, command
from megaunigame.tiny_world.start_folder import parameters_per_part

BIAS = "quant_conv.bias"


def tokenizer_of_words() -> PreTrainedTokenizerFast:
    """The words of the tiny world, with the token that holds the places of pictures."""
    tokenizer = read_tokenizer(WORDS)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    return tokenizer


@torch.no_grad()
def mean_and_deviation(module: Autoencoder, generator: torch.Generator) -> tuple[Tensor, float]:
    """(C,) means of the latents of pictures of random blocks, and the deviation of all around them."""
    blocks = torch.rand(PICTURES, 3, BLOCKS, BLOCKS, generator=generator) * 2 - 1
    latents, _ = module.posterior(F.interpolate(blocks, (IMAGE_SIZE, IMAGE_SIZE), mode="nearest"))
    means = latents.mean((0, 2, 3))
    return means, float((latents - means.view(-1, 1, 1)).square().mean().sqrt())


def write_start(out: Path, seed: int) -> dict[str, int]:
    """Write the start folder; returns the number of weights per part."""
    tokenizer = tokenizer_of_words()
    config = config_for(tokenizer, read_shape(TINY))
    state = random_state(config, seed)
    module = autoencoder(config).eval()
    module.load_state_dict({name: state[AUTOENCODER + name] for name in module.state_dict()})
    means, deviation = mean_and_deviation(module, torch.Generator().manual_seed(seed))
    state[AUTOENCODER + BIAS][: config.channels] -= means
    sizes = {**config.autoencoder, "scaling_factor": round(1 / deviation, 4)}
    write_folder(out, dataclasses.replace(config, autoencoder=sizes), state, tokenizer)
    return parameters_per_part(state)


main = command(__doc__, "harmon", write_start)

if __name__ == "__main__":
    run_to_exit(main, sys.argv[1:])
