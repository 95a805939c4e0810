"""Attention targets: tables of (delta, target) by layer, and their files (arXiv 2511.22663).

A file gives bands of layers, each end included::

    depth: 30                       # layers of the language model
    generate:
      - {layers: [0, 9], delta: 0.2, target: 0.4}
      - {layers: [10, 29], delta: 0.1, target: 0.4}
    understand:
      - {layers: [0, 29], delta: 0.05, target: 0.15}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megaunigame.errors import ConfigError
from megaunigame.registry import unknown
from megaunigame.step.requests import GENERATE, UNDERSTAND

PASSES = (GENERATE, UNDERSTAND)
TABLES = ("auto", "janus_pro", "emu3", "released", "relative")
ENDINGS = (".yaml", ".yml")
JANUS_PRO_DEPTH, EMU3_DEPTH = 30, 32
PUBLISHED = {("janus", JANUS_PRO_DEPTH): "janus_pro", ("emu3", EMU3_DEPTH): "emu3"}
"""Family and layers of a model -> its table."""


@dataclass(frozen=True)
class Target:
    """Attention loss of one layer: huber_delta(share - target)."""

    delta: float
    """Distance up to which the gradient grows; it is constant beyond."""
    target: float
    """Share of attention, in [0, 1]."""


Targets = Mapping[str, Sequence[Target]]
"""Pass -> one target for each layer of the language model."""


def check_targets(name: str) -> None:
    """Raise ConfigError unless `name` is a table or a YAML file that exists; its content is read when the depth is known."""
    if name in TABLES:
        return
    if not name.endswith(ENDINGS):
        raise ConfigError(unknown("table of attention targets", name, [*TABLES, "FILE.yaml"]))
    if not Path(name).is_file():
        raise ConfigError(
            f"No targets file {name}. Give one, or a table ({', '.join(TABLES)}). Targets are measured with "
            "megaunigame measure-attention --help"
        )


def find_targets(name: str, family: str, depth: int, compat: bool = False) -> dict[str, list[Target]]:
    """The targets of a table, or of the YAML file at that path; a file may lack a pass. Raises ConfigError as both do."""
    return table(name, depth, compat, family) if name in TABLES else read_targets(name, depth)


def table(name: str, depth: int, compat: bool = False, family: str = "") -> dict[str, list[Target]]:
    """The table for `depth` layers: `janus_pro` or `emu3` as published; `auto`: the one published for this family and depth;
    `released`: that of the released code, whose bands are at the same layers of every model; `relative`: that of
    Janus-Pro with its bands at the same fraction of the depth, for which nobody has shown a gain.

    With `compat` the published tables are those of the released code: they differ from the paper in understanding, at layer 20
    and, of 32 layers, at layer 30. Raises ConfigError when the named table has another depth, and for `auto` when none was
    published for the model.
    """
    if name not in TABLES:
        raise ConfigError(unknown("value of objectives.aia.targets", name, [*TABLES, "FILE.yaml"]))
    if name == "auto":
        if (family, depth) not in PUBLISHED:
            raise ConfigError(
                f"targets=auto: no table was published for a {family or 'model'} of {depth} layers (Janus-Pro-7B has "
                f"{JANUS_PRO_DEPTH}, Emu3 {EMU3_DEPTH}). Measure targets on task-specific models: python "
                "megaunigame measure-attention --help; or type targets=relative for the bands of Janus-Pro-7B at this depth."
            )
        name = PUBLISHED[family, depth]
    if name == "relative":
        return {GENERATE: _by_share(depth, _GENERATE_SHARES), UNDERSTAND: _by_share(depth, _UNDERSTAND_SHARES)}
    if name == "released":
        return _by_layer(depth, deep=21, last=29)
    meant = JANUS_PRO_DEPTH if name == "janus_pro" else EMU3_DEPTH
    if depth != meant:
        raise ConfigError(
            f"objectives.aia.targets={name} is made for {meant} layers, and this model has {depth}. Type "
            "objectives.aia.targets=relative, or measure targets: megaunigame measure-attention --help"
        )
    if compat:
        return _by_layer(depth, deep=21, last=29)
    return _by_layer(depth, deep=20, last=30 if name == "emu3" else 29)


def _by_layer(depth: int, *, deep: int, last: int) -> dict[str, list[Target]]:
    """Bands at fixed layers. `deep`: first layer of the band with the highest target of understanding; `last`: its last, L of
    the paper."""
    generate = [Target(0.2, 0.4) if x < 10 else Target(0.1, 0.4) if x < 25 else Target(0.05, 0.2) for x in range(depth)]
    understand = [
        Target(0.05, 0.1 if x < 10 else 0.15 if x < deep else 0.3 if x <= last else 0.2)
        for x in range(depth)
    ]  # fmt: skip
    return {GENERATE: generate, UNDERSTAND: understand}


_GENERATE_SHARES = ((1 / 3, Target(0.2, 0.4)), (5 / 6, Target(0.1, 0.4)), (1.0, Target(0.05, 0.2)))
_UNDERSTAND_SHARES = ((1 / 3, Target(0.05, 0.1)), (2 / 3, Target(0.05, 0.15)), (1.0, Target(0.05, 0.3)))
"""Bands of the 30-layer table, by the fraction of the depth at which each ends."""


def _by_share(depth: int, bands: Sequence[tuple[float, Target]]) -> list[Target]:
    return [next(target for end, target in bands if (layer + 0.5) / depth < end) for layer in range(depth)]


def read_targets(path: str | Path, depth: int) -> dict[str, list[Target]]:
    """Targets of a file, for every layer; a pass may be missing. Raises ConfigError for another depth, gaps, wrong values."""
    check_targets(str(path))
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:  # ValueError: not UTF-8 too
        raise ConfigError(f"{path} is not YAML: {error}.") from error
    if not isinstance(content, dict) or "depth" not in content:
        raise ConfigError(f"{path} is not a targets file: it has no `depth`. See megaunigame measure-attention --help.")
    if content["depth"] != depth:
        raise ConfigError(
            f"{path} has targets for {content['depth']} layers, and this model has {depth}. Measure them for it: python "
            f"megaunigame measure-attention ... --layers {depth} stretches the curve of any model to {depth} layers."
        )
    found = {name: content[name] for name in PASSES if name in content}
    if not found:
        raise ConfigError(f"{path} has targets for no pass; give {' or '.join(PASSES)}.")
    return {name: _expanded(bands, depth, f"{path}, {name}") for name, bands in found.items()}


def _expanded(bands: Any, depth: int, where: str) -> list[Target]:
    expanded: list[Target] = []
    if not isinstance(bands, list):
        raise ConfigError(f"{where}: must be a list of bands; got {str(bands)[:80]}.")
    for band in bands:
        if not _is_band(band):
            raise ConfigError(f"{where}: a band is {{layers: [first, last], delta: d, target: t}}; got {band}.")
        first, last = band["layers"]
        if first != len(expanded) or not first <= last < depth:
            raise ConfigError(
                f"{where}: bands must follow one another from layer 0 to {depth - 1}; where layer {len(expanded)} is due, "
                f"there is [{first}, {last}]."
            )
        if not 0 <= band["target"] <= 1 or not 0 < band["delta"]:
            raise ConfigError(f"{where}: a target lies in [0, 1] and a delta above 0; got {band}.")
        expanded += [Target(float(band["delta"]), float(band["target"]))] * (last - first + 1)
    if len(expanded) != depth:
        raise ConfigError(f"{where}: no band for layer {len(expanded)}; the model has {depth}.")
    return expanded


def _is_band(band: Any) -> bool:
    if not isinstance(band, dict) or set(band) != {"layers", "delta", "target"}:
        return False
    layers, numbers = band["layers"], (band["delta"], band["target"])
    whole = isinstance(layers, list) and len(layers) == 2 and all(type(layer) is int for layer in layers)
    return whole and all(type(number) in (int, float) for number in numbers)


def write_targets(path: str | Path, targets: Targets, comment: str = "") -> None:
    """Write a file that `read_targets` reads; equal targets of consecutive layers become one band. `comment` heads it."""
    depth = len(next(iter(targets.values())))
    lines = [f"# {line}" for line in comment.splitlines()] + [f"depth: {depth}"]
    for name, layer_targets in targets.items():
        lines.append(f"{name}:")
        first = 0
        for layer in range(1, depth + 1):
            if layer == depth or layer_targets[layer] != layer_targets[first]:
                band = layer_targets[first]
                lines.append(f"  - {{layers: [{first}, {layer - 1}], delta: {band.delta:g}, target: {band.target:g}}}")
                first = layer
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
