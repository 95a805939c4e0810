"""Make the start folder of a tiny OpenUni: trained autoencoder, everything else random.

    python -m megaunigame.tiny_world.openuni --out runs/tiny_openuni/start
    python -m megaunigame.tiny_world.openuni --out runs/tiny_openuni/start --train --data shards --work runs/tiny_openuni

The first uses the autoencoder and the text tokenizer that ship with the project and needs no data. The second trains both, on
the `train` and `val` scenes in --data (`megaunigame prepare scenes`); started again, it continues.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from megaunigame.errors import ConfigError
from megaunigame.launching import options_of, run_to_exit
from megaunigame.models.openuni.configuration import OpenUniConfig
from megaunigame.models.openuni.conversation import REQUEST, UNCONDITIONAL
from megaunigame.models.openuni.folder import config_for, random_state, train_tokenizer, write_folder
from megaunigame.models.openuni.sizes import TINY
from megaunigame.models.shapes import read_shape
from megaunigame.models.weights.settings_files import read_tokenizer
from megaunigame.tiny_world.autoencoder_training import evaluate_autoencoder, read_autoencoder, train_autoencoder
from megaunigame.tiny_world.loop import LoopSettings
from megaunigame.tiny_world.scenes import load_scenes
from megaunigame.tiny_world.sizes import VOCABULARY
from megaunigame.tiny_world.start_folder import parameters_per_part
from megaunigame.tiny_world.tokenizer_text import TASK_SENTENCES, sentences, words_of

SHIPPED = Path(__file__).parent / "weights" / "openuni"
STEPS, LEARNING_RATE = 1500, 2e-3
TEMPLATE = ("user\n", "assistant\n", REQUEST, UNCONDITIONAL, "draw the regions of this image .")
"""Text of rows that is not in the scenes."""


def tiny_openuni(tokenizer: PreTrainedTokenizerFast, scaling_factor: float = 1.0) -> OpenUniConfig:
    """The tiny OpenUni for a text tokenizer and the scale of an autoencoder."""
    return config_for(tokenizer, read_shape(TINY, {"autoencoder": {"scaling_factor": scaling_factor}}))


def train_parts(data: Path, work: Path, loop: LoopSettings) -> dict[str, Any]:
    """Text tokenizer and autoencoder from the scenes in `data`, into `work`; returns the autoencoder's numbers."""
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(words_of((*sentences(data / "train"), *TASK_SENTENCES, *TEMPLATE)), VOCABULARY)
    tokenizer.save_pretrained(work)
    module = train_autoencoder(tiny_openuni(tokenizer), load_scenes(data / "train"), work, loop)
    weights, scale = read_autoencoder(work)
    module.load_state_dict(weights)  # as stored, in half precision
    numbers = {
        "steps": loop.steps,
        "parameters": sum(p.numel() for p in module.parameters()),
        "scaling_factor": scale,
        "val": evaluate_autoencoder(module, scale, load_scenes(data / "val", limit=256)),
    }
    (work / "autoencoder.json").write_text(json.dumps(numbers, indent=2) + "\n")
    return numbers


def write_start(parts: Path, out: Path, seed: int) -> dict[str, int]:
    """Write the start folder from tokenizer and autoencoder in `parts`; returns the number of weights per part."""
    weights, scale = read_autoencoder(parts)
    tokenizer = read_tokenizer(parts)
    config = tiny_openuni(tokenizer, scale)
    state = random_state(config, seed) | {f"vae.{name}": value for name, value in weights.items()}
    write_folder(out, config, state, tokenizer)
    return parameters_per_part(state)


def main(arguments: list[str]) -> None:
    parser = options_of(__doc__, "python -m megaunigame.tiny_world.openuni")
    parser.add_argument("--out", type=Path, required=True, help="the start folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", action="store_true", help="train tokenizer and autoencoder instead of taking the shipped")
    parser.add_argument("--data", type=Path, help="with --train: folder with train and val scenes")
    parser.add_argument("--work", type=Path, help="with --train: where trained parts and their state are kept")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"with --train: steps of the autoencoder (default {STEPS})")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    if options.train:
        if options.data is None or options.work is None:
            raise ConfigError("--train needs --data (folder with train and val scenes) and --work (where to keep its state).")
        loop = LoopSettings(steps=options.steps, learning_rate=LEARNING_RATE, seed=options.seed)
        print(json.dumps(train_parts(options.data, options.work, loop), indent=2), flush=True)
    counts = write_start(options.work if options.train else SHIPPED, options.out, options.seed)
    print(f"{options.out}: {json.dumps(counts)}")


if __name__ == "__main__":
    run_to_exit(main, sys.argv[1:])
