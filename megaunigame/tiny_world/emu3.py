"""Make the start folder of a tiny Emu3, with random weights.

    python -m megaunigame.tiny_world.emu3 --out runs/tiny_emu3/start

The words are those of the shipped tokenizers. The vision tokenizer is not trained: its layers are random, and only its codebook
is made of their latents, so that different pictures have different codes. Codes can be learned; decoded, they are noise.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from megaunigame.launching import run_to_exit
from megaunigame.models.emu3.conversation import BOS, EOS, PAD
from megaunigame.models.emu3.folder import config_for, random_state, special_tokens, write_folder
from megaunigame.models.emu3.sizes import TINY
from megaunigame.models.emu3.vq import VisionTokenizer
from megaunigame.models.shapes import read_shape
from megaunigame.tiny_world.sizes import CODES, IMAGE_SIZE
from megaunigame.tiny_world.start_codes import cells_of_blocks, command, words_and
from megaunigame.tiny_world.start_folder import parameters_per_part

CODEBOOK = "quantize.embedding.weight"


def tokenizer_with_codes() -> PreTrainedTokenizerFast:
    """The words of the tiny world, followed by Emu3's special tokens and codes."""
    return words_and(special_tokens(CODES), pad=PAD, bos=BOS, eos=EOS)


def write_start(out: Path, seed: int) -> dict[str, int]:
    """Write the start folder; returns the number of weights per part."""
    tokenizer = tokenizer_with_codes()
    config = config_for(tokenizer, read_shape(TINY))
    state = random_state(config, seed)
    prefix = "model.vqmodel."
    vision = VisionTokenizer(config.vq_config).eval()
    vision.load_state_dict({name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)})
    state[prefix + CODEBOOK] = cells_of_blocks(vision, torch.Generator().manual_seed(seed))
    write_folder(out, config, state, tokenizer, image_size=IMAGE_SIZE, system_prompt="")
    return parameters_per_part(state)


main = command(__doc__, "emu3", write_start)

if __name__ == "__main__":
    run_to_exit(main, sys.argv[1:])
