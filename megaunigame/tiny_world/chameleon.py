"""Make the start folder of a tiny Chameleon, with random weights.

    python -m megaunigame.tiny_world.chameleon --out runs/tiny_chameleon/start

The words are those of the shipped tokenizers. The image tokenizer is not trained: its layers are random, and only its codebook
is made of their latents, so that different pictures have different codes. Codes can be learned; decoded, they are noise.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from megaunigame.launching import run_to_exit
from megaunigame.models.chameleon.folder import CODEBOOK, config_for, random_state, special_tokens, write_folder
from megaunigame.models.chameleon.keys import IMAGE_TOKENIZER
from megaunigame.models.chameleon.sizes import TINY
from megaunigame.models.chameleon.text_tokenizer import BOS, EOS, PAD
from megaunigame.models.chameleon.vq import ImageTokenizer
from megaunigame.models.shapes import read_shape
from megaunigame.tiny_world.sizes import CODES
from megaunigame.tiny_world.start_codes import cells_of_blocks, command, words_and
from megaunigame.tiny_world.start_folder import parameters_per_part


def tokenizer_with_codes() -> PreTrainedTokenizerFast:
    """The words of the tiny world, followed by Chameleon's special tokens and codes."""
    return words_and(special_tokens(CODES), pad=PAD, bos=BOS, eos=EOS)


def write_start(out: Path, seed: int) -> dict[str, int]:
    """Write the start folder; returns the number of weights per part."""
    tokenizer = tokenizer_with_codes()
    config = config_for(tokenizer, read_shape(TINY))
    state = random_state(config, seed)
    images = ImageTokenizer(config.vq_config, range(CODES)).eval()
    of_images = {name: value for name, value in state.items() if name.startswith(IMAGE_TOKENIZER)}
    images.load_state_dict({name.removeprefix(IMAGE_TOKENIZER): value for name, value in of_images.items()})
    state[IMAGE_TOKENIZER + CODEBOOK] = cells_of_blocks(images, torch.Generator().manual_seed(seed))
    write_folder(out, config, state, tokenizer)
    return parameters_per_part(state)


main = command(__doc__, "chameleon", write_start)

if __name__ == "__main__":
    run_to_exit(main, sys.argv[1:])
