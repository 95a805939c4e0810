"""Make the start folder of a tiny BLIP3o-NEXT: the trained autoencoder of the tiny OpenUni, everything else random.

    python -m megaunigame.tiny_world.blip3o_next --out runs/tiny_blip3o_next/start

The words are those of the shipped tokenizers. The vision tokenizer is not trained: its layers are random, and its codebook is
made of the directions of its latents around their mean, so that different pictures have different codes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from megaunigame.launching import run_to_exit
from megaunigame.models.blip3o_next.conversation import PAD, TURN_END
from megaunigame.models.blip3o_next.folder import config_for, random_state, special_tokens, write_folder
from megaunigame.models.blip3o_next.keys import AUTOENCODER, TOKENIZER
from megaunigame.models.blip3o_next.sizes import TINY
from megaunigame.models.blip3o_next.vq import VisionTokenizer
from megaunigame.models.shapes import read_shape
from megaunigame.tiny_world.autoencoder_training import read_autoencoder
from megaunigame.tiny_world.openuni import SHIPPED
from megaunigame.tiny_world.sizes import CODES
from megaunigame.tiny_world.start_codes import cells_of_blocks, command, words_and
from megaunigame.tiny_world.start_folder import parameters_per_part


def tokenizer_with_codes() -> PreTrainedTokenizerFast:
    """The words of the tiny world, followed by BLIP3o-NEXT's special tokens and codes."""
    return words_and(special_tokens(CODES), pad=PAD, bos=None, eos=TURN_END)


def spread_codes(vision: VisionTokenizer, generator: torch.Generator) -> dict[str, Tensor]:
    """The weights of `vision` with a codebook that its latents use evenly.

    Latents have length 1. The bias of the layer before moves their mean to about 0, and cells of pictures are the codes.
    """
    bias = vision.bottleneck["in_linear"].bias
    assert isinstance(bias, Tensor)
    raw: list[Tensor] = []
    hook = vision.bottleneck["in_linear"].register_forward_hook(lambda module, given, output: raw.append(output.flatten(0, 1)))
    cells_of_blocks(vision, generator)
    hook.remove()
    bias -= torch.cat(raw).mean(0)
    cells = cells_of_blocks(vision, generator)
    return vision.state_dict() | {
        "bottleneck.regularizer.embedding.weight": cells,
        "bottleneck.regularizer.embedding_proj.weight": torch.eye(cells.shape[1]),
        "bottleneck.regularizer.embedding_proj.bias": torch.zeros(cells.shape[1]),
    }


def write_start(out: Path, seed: int) -> dict[str, int]:
    """Write the start folder; returns the number of weights per part."""
    tokenizer = tokenizer_with_codes()
    autoencoder, scale = read_autoencoder(SHIPPED)
    config = config_for(tokenizer, read_shape(TINY, {"vae": {"scaling_factor": scale}}))
    state = random_state(config, seed)
    vision = VisionTokenizer(config.vq_config).eval()
    vision.load_state_dict({n.removeprefix(TOKENIZER): v for n, v in state.items() if n.startswith(TOKENIZER)})
    spread = spread_codes(vision, torch.Generator().manual_seed(seed))
    state |= {TOKENIZER + name: value for name, value in spread.items()}
    state |= {AUTOENCODER + name: value for name, value in autoencoder.items()}
    write_folder(out, config, state, tokenizer, system_prompt="")
    return parameters_per_part(state)


main = command(__doc__, "blip3o_next", write_start)

if __name__ == "__main__":
    run_to_exit(main, sys.argv[1:])
