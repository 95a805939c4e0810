"""How a model was trained to draw a representation of a picture: the prompt, and how pictures become squares.

A run says it in its recipe, a model folder in `redraw_prompts.json`, which exports write:

    {"depth": {"prompt": "draw the depth of this image .", "geometry": "squash"}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from megaunigame.config import Recipe
from megaunigame.errors import ConfigError, ModelError
from megaunigame.objectives.building import build_objectives
from megaunigame.objectives.unimrg.prompts import DESCRIBED, PAPER
from megaunigame.registry import available, unknown
from megaunigame.representations.base import Representation
from megaunigame.step.requests import GEOMETRIES, SQUASH
from megaunigame.storage.foreign_text import quoted
from megaunigame.storage.json_files import read_object
from megaunigame.storage.whole_files import write_whole

FILE = "redraw_prompts.json"
SENTENCES = {name: wordings[0] for name, wordings in {**DESCRIBED, **PAPER}.items()}


@dataclass(frozen=True)
class Redraw:
    prompt: str
    geometry: str
    """Of the source, and of what is drawn."""


def chosen(name: str, known: Mapping[str, Redraw], prompt: str | None = None, geometry: str | None = None) -> Redraw:
    """How `name` is asked for: with `prompt` and `geometry`; where they are None, as is `known` of the model; else with the
    sentence of the UniMRG paper, squashed.

    Raises ConfigError for a name that is not a representation, for one that has no sentence, and for an unknown geometry.
    """
    legal = available("representations", Representation)
    if name not in legal:
        raise ConfigError(unknown("representation", name, legal))
    if geometry is not None and geometry not in GEOMETRIES:
        raise ConfigError(unknown("geometry", geometry, list(GEOMETRIES)))
    asked = known.get(name)
    if prompt is None and asked is None and name not in SENTENCES:
        raise ConfigError(
            f"How {name} is asked for is not known. Type the prompt of its training: --prompt TEXT, in Python prompt=TEXT."
        )
    words = prompt if prompt is not None else asked.prompt if asked is not None else SENTENCES[name]
    return Redraw(words, geometry or (SQUASH if asked is None else asked.geometry))


def redraws_of_recipe(recipe: Recipe) -> dict[str, Redraw]:
    """Those that the objectives of a recipe train."""
    found: dict[str, Redraw] = {}
    for objective in build_objectives(recipe, planned=True):
        found |= {name: Redraw(*how) for name, how in objective.redraws().items()}
    return found


def redraws_of_folder(folder: Path) -> dict[str, Redraw]:
    """Of a model folder; none without the file. Raises ModelError when it cannot be read."""
    if not (folder / FILE).is_file():
        return {}
    entries = read_object(folder / FILE, "prompts for drawing representations", ModelError, "Delete it, or write it again.")
    for name, how in entries.items():
        fits = isinstance(how, dict) and set(how) == {"prompt", "geometry"} and isinstance(how["prompt"], str)
        if not fits or how["geometry"] not in GEOMETRIES:
            raise ModelError(
                f"{folder / FILE} has {quoted(how)} for {quoted(name)}; an entry has a `prompt` and a `geometry`, one of "
                f"{', '.join(GEOMETRIES)}."
            )
    return {name: Redraw(**how) for name, how in entries.items()}


def write_redraws(out: Path, base: Path, recipe: Recipe) -> None:
    """Into an exported folder: what its run trained, and what the model folder `base` had already."""
    known = redraws_of_folder(base) | redraws_of_recipe(recipe)
    if known:
        write_whole(out / FILE, json.dumps({name: asdict(how) for name, how in sorted(known.items())}, indent=2) + "\n")
