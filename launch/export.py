"""Turn a checkpoint into a model folder that Hugging Face and this project load, or into a PEFT adapter.

    python launch/export.py runs/tiny_sft --out exported/tiny_sft --dtype bfloat16
    python launch/export.py runs/tiny_sft --out exported/adapter --adapter
    python launch/export.py runs/tiny_sft --step 30 --out exported/step_30

One process, no GPU, for any number of training ranks.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.pop(0)  # launch/, where profile.py would hide Python's module of that name
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from megaunigame.checkpoint.export import check_out, export_adapter, export_model
from megaunigame.config import load_recipe
from megaunigame.errors import ConfigError
from megaunigame.launching import options_of, run_to_exit
from megaunigame.models.base import UnifiedModel
from megaunigame.registry import find


def main(arguments: list[str]) -> None:
    parser = options_of(__doc__)
    parser.add_argument("run", type=Path, help="run folder (holds recipe.yaml and checkpoints/)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--step", type=int, help="default: the newest checkpoint")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--adapter", action="store_true", help="write the LoRA adapters alone")
    options = parser.parse_args(arguments)

    check_out(options.out)
    recipe = load_recipe(str(options.run / "recipe.yaml"), [])
    pointer = options.run / "checkpoints" / "latest"
    if options.step is None and not pointer.is_file():
        raise ConfigError(f"{options.run} has no checkpoint yet. Give the folder of a run that has saved one.")
    name = pointer.read_text().strip() if options.step is None else f"step-{options.step:08d}"
    folder = options.run / "checkpoints" / name
    if options.adapter:
        if recipe.model.train != "lora":
            raise ConfigError(
                f"--adapter needs a run with model.train=lora; {options.run} trained model.train={recipe.model.train}."
            )
        size = export_adapter(recipe.model, folder, options.out)
    else:
        family = find("models", recipe.model.family, UnifiedModel)
        size = export_model(family, recipe.model, folder, options.out, getattr(torch, options.dtype))
    print(f"{options.out}: {size:,} bytes of weights from {folder}")


if __name__ == "__main__":
    run_to_exit(main, sys.argv[1:])
