"""All settings that the library reads, by where they stand: recipes, objectives, adversaries, evaluation suites, sweeps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from megaunigame.adversary.base import Adversary
from megaunigame.config import Recipe
from megaunigame.evaluation.suites.base import Suite
from megaunigame.objectives.base import Objective
from megaunigame.reference.settings import NAME, Section, Setting, sections
from megaunigame.registry import available, find
from megaunigame.sweeping.definition import Sweep


@dataclass(frozen=True)
class Part:
    """The settings of one thing that can be named in a recipe."""

    kind: str
    """`recipe`, `objective`, `adversary`, `suite` or `sweep`."""
    name: str
    """Module name of an objective, adversary or suite; else ""."""
    sections: tuple[Section, ...]


def all_parts() -> list[Part]:
    """In the order of a recipe. Imports every objective, adversary and suite, and with them torch: about two seconds."""
    parts = [Part("recipe", "", tuple(sections(Recipe, "")))]
    for name in available("objectives", Objective):
        schema = find("objectives", name, Objective).Config
        parts.append(Part("objective", name, tuple(sections(schema, f"objectives.{name}"))))
    for name in available("adversary", Adversary):
        schema = find("adversary", name, Adversary).Config
        parts.append(Part("adversary", name, tuple(sections(schema, "objectives.unigame.adversary"))))
    for name in available("evaluation.suites", Suite):
        schema = find("evaluation.suites", name, Suite).Config
        parts.append(Part("suite", name, tuple(sections(schema, f"evaluation.suites.{NAME}"))))
    return [*parts, Part("sweep", "", tuple(sections(Sweep, "")))]


def all_settings(parts: list[Part]) -> Iterator[tuple[Part, Section, Setting]]:
    for part in parts:
        for section in part.sections:
            for setting in section.settings:
                yield part, section, setting
