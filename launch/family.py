"""Commands of one model family: make a model folder of published parts, write weights under the official keys.

    python launch/family.py openuni assemble --size l --internvl InternVL3-2B \\
        --transformer Sana_1600M_512px_diffusers/transformer --autoencoder Sana_1600M_512px_diffusers/vae \\
        --openuni openuni_l_512.pth --out models/openuni_l
    python launch/family.py openuni official --model models/openuni_l --out exported/official
    python launch/family.py openuni --help                     commands of the family
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

sys.path.pop(0)  # launch/, where profile.py would hide Python's module of that name
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tqdm import tqdm

from megaunigame.checkpoint.export import check_out, write_shards
from megaunigame.launching import options_of, run_to_exit
from megaunigame.models.base import UnifiedModel
from megaunigame.registry import available


def main(arguments: list[str]) -> None:
    parser = options_of(__doc__)
    families = parser.add_subparsers(dest="family", required=True, help="families that have commands")
    for name in available("models", UnifiedModel):
        package = import_module(f"megaunigame.models.{name}")
        if not hasattr(package, "__path__") or find_spec(f"{package.__name__}.commands") is None:
            continue
        commands = import_module(f"{package.__name__}.commands")
        text = commands.__doc__ or ""
        of_family = families.add_parser(
            name, help=text.partition("\n")[0], description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        subparsers = of_family.add_subparsers(dest="command", required=True)
        commands.add_commands(subparsers)
        for command in subparsers.choices.values():
            command.add_argument("--out", type=Path, required=True, help="folder to write")
            command.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    options = parser.parse_args(arguments)

    check_out(options.out)
    tensors = options.tensors(options)
    options.out.mkdir(parents=True, exist_ok=True)
    size = write_shards(tqdm(tensors, unit=" tensors"), options.out, getattr(torch, options.dtype))
    print(f"{options.out}: {size:,} bytes of weights")


if __name__ == "__main__":
    run_to_exit(main, sys.argv[1:])
