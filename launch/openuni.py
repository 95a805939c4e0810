"""Assemble an OpenUni folder from published parts, or write the weights of one under the official keys.

    python launch/openuni.py assemble --size l --internvl InternVL3-2B --transformer Sana_1600M_512px_diffusers/transformer \\
        --autoencoder Sana_1600M_512px_diffusers/vae --openuni openuni_l_512.pth --out models/openuni_l
    python launch/openuni.py official --model models/openuni_l --out exported/official

Sizes: b (InternVL3-1B, SANA-0.6B), l (InternVL3-2B, SANA-1.6B), 38b (InternVL3-38B, SANA1.5-4.8B). Without --openuni, meta
queries, connector and projector are random. The tokenizer comes from InternVL's folder.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.pop(0)  # launch/, where profile.py would hide Python's module of that name
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from tqdm import tqdm

from megaunigame.checkpoint.export import write_shards
from megaunigame.launching import options_of, run_to_exit
from megaunigame.models.openuni import OpenUni
from megaunigame.models.openuni.assembling import assemble
from megaunigame.models.openuni.keys import official_weights
from megaunigame.models.openuni.sizes import SIZES
from megaunigame.models.weights.settings_files import copy_settings, read_tokenizer


def main(arguments: list[str]) -> None:
    parser = options_of(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    parts = commands.add_parser("assemble", help="published parts -> a model folder")
    parts.add_argument("--size", choices=list(SIZES), required=True)
    parts.add_argument("--image-size", type=int, default=512, help="side of generated pictures (default 512)")
    for name, what in (("internvl", "InternVL3"), ("transformer", "SANA, diffusers"), ("autoencoder", "DC-AE, diffusers")):
        parts.add_argument(f"--{name}", type=Path, required=True, help=f"folder of {what}")
    parts.add_argument("--openuni", type=Path, help="file with official keys; its weights replace the random ones")
    parts.add_argument("--seed", type=int, default=0, help="of the random parts without --openuni")
    official = commands.add_parser("official", help="a model folder -> weights under the official keys")
    official.add_argument("--model", type=Path, required=True)
    for command in (parts, official):
        command.add_argument("--out", type=Path, required=True, help="folder to write")
        command.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    options = parser.parse_args(arguments)

    if options.command == "assemble":
        config = SIZES[options.size](options.image_size)
        read_tokenizer(options.internvl)
        weights = assemble(config, options.internvl, options.transformer, options.autoencoder, options.openuni, options.seed)
        copy_settings(options.internvl, options.out)
        config.write(options.out)
        tensors: Iterator[tuple[str, Tensor]] = ((name, weights.read(name)) for name in sorted(weights.names()))
    else:
        tensors = official_weights(OpenUni.weights(str(options.model)), OpenUni.frozen_weights(str(options.model)))
        options.out.mkdir(parents=True, exist_ok=True)
    size = write_shards(tqdm(tensors, unit=" tensors"), options.out, getattr(torch, options.dtype))
    print(f"{options.out}: {size:,} bytes of weights")


if __name__ == "__main__":
    run_to_exit(main, sys.argv[1:])
