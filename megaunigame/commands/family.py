"""Commands of one model family: make a model folder of published parts, write weights under the official keys.

    megaunigame family openuni assemble --size l --internvl InternVL3-2B \\
        --transformer Sana_1600M_512px_diffusers/transformer --autoencoder Sana_1600M_512px_diffusers/vae \\
        --openuni openuni_l_512.pth --out models/openuni_l
    megaunigame family openuni official --model models/openuni_l --out exported/official
    megaunigame family openuni --help                     commands of the family
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

MODELS = Path(__file__).parents[1] / "models"


def add_options(parser: argparse.ArgumentParser) -> None:
    with_commands = sorted(file.parent.name for file in MODELS.glob("*/commands.py"))
    parser.add_argument("family", choices=with_commands, help="a family that has commands")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND ...", help="its command, with options")


def run(options: argparse.Namespace) -> None:
    import torch
    from tqdm import tqdm

    from megaunigame.checkpoint.export import check_out, write_shards

    chosen = parser_of(options.family).parse_args(options.words)
    check_out(chosen.out)
    tensors = chosen.tensors(chosen)
    chosen.out.mkdir(parents=True, exist_ok=True)
    size = write_shards(tqdm(tensors, unit=" tensors"), chosen.out, getattr(torch, chosen.dtype))
    print(f"{chosen.out}: {size:,} bytes of weights")


def parser_of(family: str) -> argparse.ArgumentParser:
    """The commands of the module `commands` of a family."""
    commands = import_module(f"megaunigame.models.{family}.commands")
    parser = argparse.ArgumentParser(
        f"megaunigame family {family}", description=commands.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subparsers = parser.add_subparsers(dest="command", required=True)
    commands.add_commands(subparsers)
    for command in subparsers.choices.values():
        command.add_argument("--out", type=Path, required=True, help="folder to write")
        command.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    return parser
