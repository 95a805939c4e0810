"""README.md of an exported folder: what it is, how to use it, how it was trained, what was measured, whose license it has."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData, metadata_load
from yaml import YAMLError

from megaunigame.monitoring.history import Evaluation, RunFolder
from megaunigame.storage.copies import copy_file, real_file
from megaunigame.storage.foreign_text import quoted

log = logging.getLogger(__name__)

CARD = "README.md"
LICENSE_KEYS = ("license", "license_name", "license_link")
SIGNIFICANT = 5


@dataclass(frozen=True)
class Export:
    """What the card says beyond what the run folder does."""

    step: int
    what: str
    """`model` or `adapters`."""
    base_folder: Path
    base_id: str | None
    """Of the base on the model hub, if it is known."""
    usage: str
    """Markdown."""
    in_transformers: bool
    differences: Sequence[str]
    """Where transformers' processor makes other token ids."""
    averaged: bool = False
    """Whether the weights are the average that the run has kept."""


def write_card(out: Path, run: RunFolder, recipe: Mapping[str, Any], export: Export) -> None:
    """Write the card and copy the license files of the base. `recipe`: the resolved recipe as plain data."""
    license = license_of(export.base_folder)
    for file in license_files(export.base_folder):
        copy_file(file, out / file.name)
    family = recipe["model"]["family"]
    facts = ModelCardData(
        **license,
        library_name="megaunigame" if not export.in_transformers else "peft" if export.what == "adapters" else "transformers",
        pipeline_tag="any-to-any",
        base_model=export.base_id,
        tags=["megaunigame", family],
    )
    sections = [
        f"---\n{facts.to_yaml()}\n---",
        f"# {recipe['name']}",
        _what(recipe, export),
        f"## Use\n\n{export.usage.strip()}",
        *_warnings(export.differences),
        _training(run, recipe),
        _measured(run.evaluations, export, averaged=recipe["evaluation"]["weights"] == "ema"),
        _license(license, export),
    ]
    (out / CARD).write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def license_files(folder: Path) -> list[Path]:
    """Of a model folder, each checked by `real_file`."""
    files = sorted(folder.glob("LICENSE*"))
    for file in files:
        real_file(file)
    return files


def license_of(folder: Path) -> dict[str, Any]:
    """License entries of the card of a model folder; empty if it has none, or, with a warning, if they cannot be read."""
    card = folder / CARD
    try:
        metadata = (metadata_load(card) if card.is_file() else None) or {}
    except (YAMLError, ValueError) as error:  # of a list, of text that is not UTF-8
        log.warning("The license in %s cannot be read (%s): name it in the new card.", card, str(error).splitlines()[0])
        return {}
    found = {key: metadata[key] for key in LICENSE_KEYS if key in metadata}
    for key, value in list(found.items()):
        texts = value if isinstance(value, list) else [value]
        if not texts or not all(isinstance(text, str) for text in texts):
            log.warning("%s=%s in %s is not a text: name the license in the new card.", key, quoted(value), card)
            del found[key]
    return found


def _what(recipe: Mapping[str, Any], export: Export) -> str:
    base = export.base_id or export.base_folder.name
    trained = (
        "LoRA adapters, " + ("alone" if export.what == "adapters" else "merged")
        if recipe["model"]["train"] == "lora"
        else "weights"
    )
    trained += " (exponential moving average of the training)" if export.averaged else ""
    return (
        f"Post-trained from `{base}` (family `{recipe['model']['family']}`) with megaunigame: {trained}, after {export.step:,} "
        f"optimizer steps of the run `{recipe['name']}`."
    )


def _warnings(differences: Sequence[str]) -> list[str]:
    if not differences:
        return []
    lines = "\n".join(f"- {line}" for line in differences)
    return [f"**transformers' processor makes other token ids than the training did:**\n\n{lines}"]


def _training(run: RunFolder, recipe: Mapping[str, Any]) -> str:
    streams = [f"| {name} | {_source(stream, run.run.get('sources', {}))} |" for name, stream in recipe["data"].items()]
    command = (
        [f"Command: `{run.run['command']}`, {run.run.get('world_size', 'unknown')} rank(s)."] if "command" in run.run else []
    )
    versions = [", ".join(f"{name} {version}" for name, version in run.run.get("versions", {}).items())]
    parts = [
        "## Training",
        f"Objectives: {', '.join(recipe['objectives'])}.",
        *command,
        *(f"Versions: {line}." for line in versions if line),
        "\n".join(["| data | shards |", "|---|---|", *streams]),
        f"<details><summary>Recipe</summary>\n\n```yaml\n{run.recipe.strip()}\n```\n\n</details>",
    ]
    return "\n\n".join(parts)


def _source(stream: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    """The shards of a stream, and what a run has packed them from."""
    if stream["mix"]:
        parts = stream["mix"].values()
        return ", ".join(f"{_origin(part['shards'], sources)} (weight {part['weight']})" for part in parts)
    return _origin(stream["shards"], sources)


def _origin(shards: str, sources: Mapping[str, str]) -> str:
    return f"{shards}, packed from {sources[shards]}" if shards in sources else shards


def _measured(evaluations: Sequence[Evaluation], export: Export, *, averaged: bool) -> str:
    """The evaluation of this step, next to that before the first. `averaged`: of the average of the weights."""
    step = export.step
    here = next((e for e in evaluations if e.step == step), None)
    if here is None:
        return f"## Measured\n\nThe run was not evaluated after step {step:,}."
    before = next((e for e in evaluations if e.step == 0 and e.step != step), None)
    rows = ["| metric | before | after |", "|---|---|---|"]
    for label, result in here.suites.items():
        for name, value in result["metrics"].items():
            earlier = None if before is None else before.suites.get(label, {}).get("metrics", {}).get(name)
            rows.append(f"| {label} {name} | {_number(earlier)} | {_number(value)} |")
    others = {True: "their average", False: "the weights of the step"}
    other = (
        f"These numbers are of {others[averaged]}; this folder holds {others[export.averaged]}.\n\n"
        if averaged != export.averaged
        else ""
    )
    return f"## Measured\n\n{other}" + "\n".join(rows)


def _number(value: Any) -> str:
    return f"{value:.{SIGNIFICANT}g}" if isinstance(value, int | float) else "" if value is None else str(value)


def _license(license: Mapping[str, Any], export: Export) -> str:
    base = export.base_id or export.base_folder.name
    if not license:
        return (
            f"## License\n\nThe card of `{base}` names no license, or it has no card. Weights made from it stand under its "
            "license: find it before you share them."
        )
    named = ", ".join(", ".join(value) if isinstance(value, list) else value for value in license.values())
    return f"## License\n\nThat of `{base}`: {named}. Weights made from it stand under its license."
