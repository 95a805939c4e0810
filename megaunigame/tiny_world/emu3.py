"""Make the start folder of a tiny Emu3, with random weights.

    python -m megaunigame.tiny_world.emu3 --out runs/tiny_emu3/start

The words are those of the shipped tokenizers. The vision tokenizer is not trained: its layers are random, and only its codebook
is made of their latents, so that different pictures have different codes. Codes can be learned; decoded, they are noise.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from megaunigame.launching import options_of, run_to_exit
from megaunigame.models.emu3.conversation import BOS, EOS, PAD
from megaunigame.models.emu3.folder import config_for, random_state, special_tokens, write_folder
from megaunigame.models.emu3.sizes import TINY
from megaunigame.models.emu3.vq import VisionTokenizer
from megaunigame.models.shapes import read_shape
from megaunigame.models.weights.settings_files import read_tokenizer
from megaunigame.tiny_world.sizes import CODES, IMAGE_SIZE
from megaunigame.tiny_world.spread_codes import spread_codebook
from megaunigame.tiny_world.start_folder import parameters_per_part

WORDS = Path(__file__).parent / "weights" / "openuni"
CODEBOOK = "quantize.embedding.weight"


def tokenizer_with_codes() -> PreTrainedTokenizerFast:
    """The words of the tiny world, followed by Emu3's special tokens and codes."""
    tokenizer = read_tokenizer(WORDS)
    tokenizer.add_special_tokens(
        {"pad_token": PAD, "bos_token": BOS, "eos_token": EOS, "additional_special_tokens": special_tokens(CODES)}
    )
    return tokenizer


def write_start(out: Path, seed: int) -> dict[str, int]:
    """Write the start folder; returns the number of weights per part."""
    tokenizer = tokenizer_with_codes()
    config = config_for(tokenizer, read_shape(TINY))
    state = random_state(config, seed)
    prefix = "model.vqmodel."
    vision = VisionTokenizer(config.vq_config).eval()
    vision.load_state_dict({name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)})
    state[prefix + CODEBOOK] = spread_codebook(vision, torch.Generator().manual_seed(seed))
    write_folder(out, config, state, tokenizer, image_size=IMAGE_SIZE, system_prompt="")
    return parameters_per_part(state)


def main(arguments: list[str]) -> None:
    parser = options_of(__doc__, "python -m megaunigame.tiny_world.emu3")
    parser.add_argument("--out", type=Path, required=True, help="the start folder to write")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    print(f"{options.out}: {json.dumps(write_start(options.out, options.seed))}")


if __name__ == "__main__":
    run_to_exit(main, sys.argv[1:])
