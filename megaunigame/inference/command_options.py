"""Options of the commands that use a model. Imports nothing that takes time: `--help` answers at once."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megaunigame.inference.model import Model
    from megaunigame.inference.source import Source


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """MODEL, and how it is loaded."""
    parser.add_argument("model", metavar="MODEL", help="model folder, folder of adapters, run, or RUN/checkpoints/step-...")
    group = parser.add_argument_group("the model")
    group.add_argument("--family", default="", metavar="NAME", help="of a model folder whose configuration does not tell")
    group.add_argument(
        "--base", type=Path, metavar="FOLDER", help="the model that adapters belong to; where the model.path of a run is now"
    )
    group.add_argument("--ema", action="store_true", help="of a run: the average of the weights that ema.decay has kept")
    group.add_argument(
        "--plugins",
        action="append",
        default=[],
        metavar="MODULE",
        help="Python module with a family of your own, which is imported; may be repeated",
    )
    group.add_argument("--device", help="cpu, cuda (the GPU of this process), cuda:N; default: cuda, else cpu")
    group.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on a GPU, float32 on cpu")
    group.add_argument("--max-length", type=int, metavar="TOKENS", help="longest row; default: what the model was trained on")
    group.add_argument("--attention", default="sdpa", choices=("sdpa", "eager", "flash_attention_2", "flash_attention_3"))


def add_batch_option(parser: argparse.ArgumentParser) -> None:
    from megaunigame.inference.settings import BATCH

    parser.add_argument("--batch", type=int, default=BATCH, metavar="N", help=f"rows that run together; default {BATCH}")


def add_settings(parser: argparse.ArgumentParser, schema: Any, about: Mapping[str, str] | None = None, **defaults: Any) -> None:
    """An option for each field of a dataclass of settings, which is None where it is not typed; `defaults` replace its own.

    `about`: field -> what its help says besides the default.
    """
    import dataclasses

    kinds = {"int": int, "float": float}
    for field in dataclasses.fields(schema):
        default = defaults.get(field.name, field.default)
        kind = kinds[str(field.type)]
        help = "; ".join([*filter(None, [(about or {}).get(field.name)]), f"default {default}"])
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, metavar="X" if kind is float else "N", help=help)


def settings_of(options: argparse.Namespace, schema: Any, **defaults: Any) -> Any:
    """The settings that were typed, with `defaults` for the others. Raises ConfigError for one out of bounds."""
    import dataclasses

    from megaunigame.settings import fill

    typed = {field.name: getattr(options, field.name) for field in dataclasses.fields(schema)}
    return fill(schema, {**defaults, **{name: value for name, value in typed.items() if value is not None}}, "")


def source_of(options: argparse.Namespace) -> Source:
    from megaunigame.inference.source import find_source
    from megaunigame.registry import use_plugins

    use_plugins(options.plugins)
    return find_source(options.model, family=options.family, base=options.base, ema=options.ema)


def load_with(options: argparse.Namespace, source: Source, *, checked: bool = False) -> Model:
    """Says what is loaded, and where to. `checked`: as of `load_source`."""
    from megaunigame.inference.loading import load_source

    rank = _rank()
    if not rank:
        print(f"Loading {source.what} ({source.family.name}).", flush=True)
    given = {name: getattr(options, name) for name in ("device", "dtype", "max_length", "attention")}
    model = load_source(source, checked=checked, **given)
    if not rank:
        weights = sum(parameter.numel() for parameter in model.network.parameters())
        dtype = next(model.network.parameters()).dtype
        print(f"{weights:,} weights, {str(dtype).removeprefix('torch.')} on {model.device}.", flush=True)
    return model


def loading_of(options: argparse.Namespace) -> dict[str, Any]:
    """How the model will be loaded, as far as results depend on it: option -> value.

    Raises ConfigError for a device that does not exist, and for a length that no row has.
    """
    from megaunigame.inference.loading import check_max_length, device_of, dtype_of

    check_max_length(options.max_length)
    dtype = str(dtype_of(options.dtype, device_of(options.device))).removeprefix("torch.")
    return {"--dtype": dtype, "--max-length": options.max_length, "--attention": options.attention}


def check_batch(options: argparse.Namespace) -> None:
    from megaunigame.errors import ConfigError

    if options.batch < 1:
        raise ConfigError(f"--batch must be 1 or more; got {options.batch}.")


def _rank() -> int:
    import os

    return int(os.environ.get("RANK", "0"))
