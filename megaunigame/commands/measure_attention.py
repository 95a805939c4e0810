"""Measure how much a model attends across modalities in each layer, and write targets that objective `aia` reads.

    megaunigame measure-attention --model models/teacher --family janus --shards shards/val --out targets.yaml
    megaunigame measure-attention --model models/teacher --family openuni --shards shards/captions --passes generate \\
        --samples 500 --bands 4 --device cuda --out targets.yaml --plot curves.png

    megaunigame measure-attention --hf models/Qwen2.5-VL-7B-Instruct --shards shards/val --layers 30 --out targets.yaml

Then train with objectives.aia.targets=targets.yaml. --hf takes any image-text-to-text model of transformers (Qwen-VL kinds,
InternVL, LLaVA, ...) and measures the understand pass, one conversation at a time. --layers gives the number of layers of the
model to train where the teacher has another.
Several GPUs, each with the whole model, from a clone:

    torchrun --nproc_per_node 8 launch/measure_attention.py ...
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    measured_model = parser.add_mutually_exclusive_group(required=True)
    measured_model.add_argument("--model", help="folder of a model of a --family")
    measured_model.add_argument(
        "--hf", help="folder of an image-text-to-text model of transformers, instead of --model and --family"
    )
    parser.add_argument("--family", help="module in megaunigame/models: janus, emu3, openuni, ...")
    parser.add_argument("--shards", required=True, help="folder of shards with images, captions and conversations")
    parser.add_argument("--samples", type=int, default=100, help="the first of the shards; 0: all (default %(default)s)")
    parser.add_argument("--passes", nargs="+", help="understand, generate; default: both, and with --hf understand alone")
    parser.add_argument("--layers", type=int, help="layers of the model to train; default: those of the measured one")
    parser.add_argument("--bands", type=int, default=0, help="bands of layers per pass; 0: the fewest that fit (default)")
    parser.add_argument("--exclude-bos", action="store_true", help="leave the first token out of the text attended to")
    parser.add_argument("--independent", action="store_true", help="ask every question of a conversation alone")
    parser.add_argument("--out", type=Path, required=True, help="file to write, NAME.yaml")
    parser.add_argument("--plot", type=Path, help="PNG file to write")
    parser.add_argument("--batch", type=int, default=8, help="rows per forward (default %(default)s); always 1 with --hf")
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: cuda if there is one")


def run(options: argparse.Namespace) -> None:
    from megaunigame.tools.teacher_attention import measure_teacher

    measure_teacher(options)
