"""The settings files of an original release of Chameleon, every value checked: they are read long before the weights fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from megaunigame.errors import ModelError
from megaunigame.models.weights.settings_files import read_settings

PARAMS, CONSOLIDATE_PARAMS = "params.json", "consolidate_params.json"
NUMBER, COUNT, FLAG, COUNTS = (
    "a number greater than 0",
    "a whole number greater than 0",
    "true or false",
    "a list of whole numbers",
)
MODEL_KINDS = {
    **{"dim": COUNT, "n_layers": COUNT, "n_heads": COUNT, "norm_eps": NUMBER, "swin_norm": FLAG, "model_parallel_size": COUNT},
    **{"n_kv_heads": COUNT, "rope_theta": NUMBER},
}
VQGAN_KINDS = {"embed_dim": COUNT, "n_embed": COUNT}
DDCONFIG_KINDS = {
    **{"double_z": FLAG, "z_channels": COUNT, "resolution": COUNT, "in_channels": COUNT, "ch": COUNT, "ch_mult": COUNTS},
    **{"num_res_blocks": COUNT, "attn_resolutions": COUNTS},
}
LARGEST_YAML = 4096
"""Bytes of vqgan.yaml, whose released form has below 1,000. The reader takes time of the square of hostile files."""
OPTIONAL = ("n_kv_heads", "rope_theta")
"""May be null or absent: as many heads of keys as of queries, the default base."""


def read_params(folder: Path) -> dict[str, Any]:
    """Settings of the language model in a `models/7b`, flat. Raises ModelError, naming file and setting, for an illegal one."""
    outside: dict[str, Any] = {}
    inside: dict[str, Any] = {}
    for name in (PARAMS, CONSOLIDATE_PARAMS):
        file = folder / name
        settings = read_settings(file)
        model = _object(settings.get("model", {}), "model", file)
        _check(settings, MODEL_KINDS, "", file)
        _check(model, MODEL_KINDS, "model.", file)
        outside, inside = outside | settings, inside | model
    return outside | inside


def read_vqgan(file: Path) -> dict[str, Any]:
    """Settings of the image tokenizer: `model.params` of vqgan.yaml. Raises ModelError, naming file and setting, for an illegal
    one."""
    try:
        if (size := file.stat().st_size) > LARGEST_YAML:
            raise yaml.YAMLError(f"{size:,} bytes, more than the {LARGEST_YAML:,} that are read")
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not YAML: {error}. Copy it again.") from error
    model = _object(_object(content, "", file).get("model"), "model", file)
    params = _object(model.get("params"), "model.params", file)
    _check(params, VQGAN_KINDS, "model.params.", file)
    _check(_object(params.get("ddconfig"), "model.params.ddconfig", file), DDCONFIG_KINDS, "model.params.ddconfig.", file)
    return params


def _object(value: Any, name: str, file: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        content = f"{name}={value!r}" if name else f"a {type(value).__name__}"
        raise ModelError(f"{file} holds {content} where a release has settings by name. Copy it again.")
    return value


def _check(settings: dict[str, Any], kinds: dict[str, str], prefix: str, file: Path) -> None:
    """Of those that are there; a missing one is named where it is used."""
    for name, kind in kinds.items():
        value = settings.get(name)
        if name in settings and not (value is None and name in OPTIONAL) and not _is(kind, value):
            raise ModelError(f"{file} has {prefix}{name}={value!r}; it must be {kind}. Copy it again.")


def _is(kind: str, value: Any) -> bool:
    if kind == COUNTS:
        return isinstance(value, list) and all(_is(COUNT, each) for each in value)
    if kind == FLAG or isinstance(value, bool):
        return kind == FLAG and isinstance(value, bool)
    return isinstance(value, int if kind == COUNT else int | float) and value > 0
