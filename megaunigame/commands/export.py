"""Turn a checkpoint into a model folder that Hugging Face and this project load, or into a PEFT adapter.

    megaunigame export runs/tiny_sft --out exported/tiny_sft --dtype bfloat16
    megaunigame export runs/tiny_sft --out exported/adapter --adapter
    megaunigame export runs/tiny_sft --step 30 --out exported/step_30
    megaunigame export runs/tiny_sft --step best --out exported/best --push-to-hub my-team/tiny-sft

One process, no GPU, for any number of training ranks. Its use in transformers: README.md of the new folder, docs/exporting.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="run folder (holds recipe.yaml and checkpoints/)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; new or empty")
    parser.add_argument(
        "--step", metavar="STEP", help="its number, or `best` (checkpoint.best); default: the newest checkpoint"
    )
    parser.add_argument("--ema", action="store_true", help="the average of the weights that ema.decay has kept")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="of a model folder, default bfloat16; adapters are float32"
    )
    parser.add_argument("--adapter", action="store_true", help="write the LoRA adapters alone")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="where the run's model.path is now, if it was moved")
    parser.add_argument(
        "--base-id", metavar="ID", help="id of the base on the model hub, for adapters and the card; default: its absolute path"
    )
    parser.add_argument(
        "--push-to-hub", metavar="ORG/NAME", help="also upload the folder to the Hugging Face Hub; a new repository is private"
    )


def run(options: argparse.Namespace) -> None:
    from megaunigame.tools.exporting import export

    export(
        options.run,
        options.out,
        step=options.step,
        dtype=options.dtype,
        adapter=options.adapter,
        model=options.model,
        base_id=options.base_id,
        averaged=options.ema,
        push_to=options.push_to_hub,
    )
