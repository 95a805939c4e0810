"""Measure how much a model attends across modalities in each layer, and write targets that objective `aia` reads.

    python launch/measure_attention.py --model models/teacher --family janus --shards shards/val --out targets.yaml
    python launch/measure_attention.py --model models/teacher --family openuni --shards shards/captions --passes generate \\
        --samples 500 --bands 4 --device cuda --out targets.yaml --plot curves.png

    python launch/measure_attention.py --hf models/Qwen2.5-VL-7B-Instruct --shards shards/val --layers 30 --out targets.yaml

Then train with objectives.aia.targets=targets.yaml. --hf takes any image-text-to-text model of transformers (Qwen-VL kinds,
InternVL, LLaVA, ...) and measures the understand pass, one conversation at a time. --layers gives the number of layers of the
model to train where the teacher has another.
Several GPUs: torchrun --nproc_per_node 8 launch/measure_attention.py ... (each holds the whole model).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.pop(0)  # launch/, where profile.py would hide Python's module of that name
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from megaunigame.attention.targets import write_targets
from megaunigame.config import load_recipe
from megaunigame.data.shards.index import ShardIndex
from megaunigame.errors import ConfigError, ModelError
from megaunigame.evaluation.attention import curves as attention_curves
from megaunigame.evaluation.attention import vision_language
from megaunigame.evaluation.attention.bands import check_bands, provenance, quantized, stretched
from megaunigame.evaluation.run import as_text
from megaunigame.launching import options_of, run_to_exit
from megaunigame.models.base import UnifiedModel
from megaunigame.models.causal.model import CausalModel
from megaunigame.models.family import Family
from megaunigame.monitoring.attention_plots import write_curves
from megaunigame.parallel.ranks import start_world
from megaunigame.registry import available, find
from megaunigame.settings import check_values
from megaunigame.step.requests import UNDERSTAND

DEVICES = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]


def main(arguments: list[str]) -> None:
    parser = options_of(__doc__)
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
    parser.add_argument("--device", choices=DEVICES, default=DEVICES[0])
    options = parser.parse_args(arguments)
    passes = options.passes or ([UNDERSTAND] if options.hf else list(attention_curves.PASSES))
    size = (options.samples, options.batch, passes)
    measuring = attention_curves.Measuring(*size, independent=options.independent, exclude_bos=options.exclude_bos)
    if options.samples < 0:
        raise ConfigError(f"--samples must be at least 0 (all); got {options.samples}.")
    if options.layers is not None and options.layers < 1:
        raise ConfigError(f"--layers must be at least 1; got {options.layers}.")
    check_values(measuring, "")
    index = ShardIndex.open(options.shards)
    own_layers = _layers_of_folder(options, passes) if options.hf else _family(options).language_layers(options.model)
    layers = options.layers or own_layers
    check_bands(options.bands, layers)
    if options.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    world = start_world(timeout_minutes=30)
    dtype = torch.bfloat16 if options.dtype == "bf16" else torch.float32
    if options.hf:
        with _hint_at_family(options.hf):
            teacher = vision_language.VisionLanguageModel.load(options.hf, world.device, dtype)
        reading = (options.max_length, world.is_main)
        measured = vision_language.measure_understanding(teacher, world, index, measuring, *reading)
    else:
        model = _family(options).load(options.model, max_length=options.max_length, device=world.device, dtype=dtype)
        measured = attention_curves.measure(model, world, index, measuring, progress=world.is_main)
    curves = {name: stretched(curve, layers) for name, curve in measured.items()}
    targets = {name: quantized(curve, options.bands) for name, curve in curves.items()}
    if world.is_main:
        source = options.hf or options.model
        write_targets(options.out, targets, provenance(measured, source, options.shards, layers))
        print(as_text({"suites": {source: {"tables": attention_curves.curve_tables(curves, targets)}}}))
        if options.plot:
            write_curves(options.plot, attention_curves.curve_metrics(curves, targets))
    world.close()


def _family(options: argparse.Namespace) -> type[CausalModel]:
    if options.family is None:
        raise ConfigError(
            "--model needs --family, the module in megaunigame/models that reads it: --family janus, for example."
        )
    family = find("models", options.family, UnifiedModel)
    if not issubclass(family, CausalModel):
        raise ModelError(f"The attention of family {options.family} cannot be measured.")
    return family


def _layers_of_folder(options: argparse.Namespace, passes: list[str]) -> int:
    if options.family is not None or passes != [UNDERSTAND]:
        raise ConfigError("--hf measures the understand pass of a model of transformers; leave out --family and --passes.")
    with _hint_at_family(options.hf):
        return vision_language.layers_of(vision_language.open_config(options.hf))


@contextmanager
def _hint_at_family(folder: str) -> Iterator[None]:
    """A ModelError about --hf also names the family of this project that can read `folder`, or the run that it is."""
    try:
        yield
    except ModelError as error:
        if (recipe := Path(folder) / "recipe.yaml").is_file():
            raise ModelError(
                f"--hf {folder} is a run of this project. Type python launch/export.py {folder} --out FOLDER, then give "
                f"--model FOLDER --family {load_recipe(str(recipe), []).model.family} instead of --hf."
            ) from error
        able = [name for name in available("models", Family) if _reads(name, folder)]
        if not able:
            raise
        instead = f"Instead of --hf, type --model {folder} --family {able[0]}, which reads this folder."
        raise ModelError(f"{instead} The fault: {error}") from error


def _reads(family: str, folder: str) -> bool:
    try:
        find("models", family, Family).configuration(folder)
    except ModelError:
        return False
    return True


if __name__ == "__main__":
    run_to_exit(main, sys.argv[1:])
