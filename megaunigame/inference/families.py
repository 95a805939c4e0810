"""The family of a model folder, found in its settings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from megaunigame.errors import ConfigError, ModelError
from megaunigame.models.base import UnifiedModel
from megaunigame.models.weights.settings_files import read_settings
from megaunigame.registry import available, find

ROOM = "models"


def family_of(folder: Path, named: str = "") -> type[UnifiedModel]:
    """The family `named`, else the one that reads the folder. Raises ModelError, with what each family says, when none does."""
    if named:
        family = find(ROOM, named, UnifiedModel)
        family.check_folder(str(folder))
        return family
    refusals: dict[str, str] = {}
    for family in _likeliest_first(folder):
        try:
            family.check_folder(str(folder))
        except ModelError as error:
            refusals[family.name] = str(error)
        else:
            return family
    said = "\n".join(f"  {name}: {text}" for name, text in sorted(refusals.items()))
    raise ModelError(
        f"No family reads the model folder {folder}:\n{said}\nGive another folder; or name the family (--family NAME, in "
        "Python family=NAME) to see its reason alone."
    )


def _likeliest_first(folder: Path) -> Iterator[type[UnifiedModel]]:
    """All families, each imported when its turn comes: first the one of the name that config.json has as its model_type."""
    kind = str(read_settings(folder / "config.json").get("model_type", ""))
    with contextlib.suppress(ConfigError):  # the official layout of a family may name another class
        yield find(ROOM, kind, UnifiedModel)
    for name in available(ROOM, UnifiedModel):
        if name != kind:
            yield find(ROOM, name, UnifiedModel)
