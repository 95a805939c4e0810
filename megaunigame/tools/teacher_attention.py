"""The attention of a teacher, by layer, becomes targets that objective `aia` reads."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from megaunigame.attention.targets import write_targets
from megaunigame.config import load_recipe
from megaunigame.data.shards.index import ShardIndex
from megaunigame.errors import ConfigError, ModelError
from megaunigame.evaluation.attention import curves as attention_curves
from megaunigame.evaluation.attention import vision_language
from megaunigame.evaluation.attention.bands import check_bands, provenance, quantized, stretched
from megaunigame.evaluation.run import as_text
from megaunigame.models.base import UnifiedModel
from megaunigame.models.causal.model import CausalModel
from megaunigame.models.family import Family
from megaunigame.monitoring.attention_plots import write_curves
from megaunigame.parallel.ranks import start_world
from megaunigame.registry import available, find
from megaunigame.settings import check_values
from megaunigame.step.requests import UNDERSTAND

DEVICES = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]


def measure_teacher(options: argparse.Namespace) -> None:
    """`options`: those of `megaunigame measure-attention`."""
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
    if (options.device or DEVICES[0]) == "cpu":
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
                f"--hf {folder} is a run of this project. Type megaunigame export {folder} --out FOLDER, then give "
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
