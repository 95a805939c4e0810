"""What comes with the package: recipes, sweeps, settings of the engine, weights of the tiny model, and `data_prep`.

Their paths are those in a clone (`launch/recipes/tiny_sft.yaml`, `ds_configs/zero3.json`). A wheel has them too, inside the
package, so that the same recipe works from any folder.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

from megaunigame.errors import ConfigError
from megaunigame.registry import nearest

PACKAGE = Path(__file__).resolve().parent
ROOTS = (PACKAGE.parent, PACKAGE)
"""Of a clone, and of an installed wheel. `megaunigame/tiny_world/weights` is at the same place in both."""
FOLDERS = ("launch/recipes/", "launch/sweeps/", "ds_configs/", "megaunigame/tiny_world/weights/")
RECIPES, SWEEPS = FOLDERS[:2]


def located(path: str) -> str:
    """`path`, or the absolute path of the shipped file of this name when the working folder does not have it."""
    if not path.startswith(FOLDERS) or Path(path).exists():
        return path
    return next((str(root / path) for root in ROOTS if (root / path).exists()), path)


def names(folder: str) -> list[str]:
    """Names (file names without `.yaml`) of the files of a folder, `RECIPES` or `SWEEPS`: shipped ones, and those of the
    working folder."""
    return sorted({file.stem for root in (Path(), *ROOTS) for file in (root / folder).glob("*.yaml")})


def yaml_file(given: str, folder: str, kind: str) -> str:
    """The path of a YAML file: `given`, or the shipped one of `folder` with this path or name.

    Raises ConfigError when there is no such file; `kind` says what it should be.
    """
    shipped = names(folder)
    for path in (given, located(given), located(f"{folder}{given}.yaml") if given in shipped else ""):
        if Path(path).is_file():
            return path
    near = nearest(Path(given).stem, shipped)
    raise ConfigError(f"No {kind} at {given}.{near} Give the path of a YAML file, or a name: {', '.join(shipped)}.")


def program(command: str) -> list[str]:
    """What to give to Python so that another process runs `megaunigame COMMAND`: a clone need not be installed."""
    script = PACKAGE.parent / "launch" / f"{command}.py"
    return [os.path.relpath(script)] if script.is_file() else ["-m", "megaunigame", command]


def data_prep(module: str) -> ModuleType:
    """The module `module` of data_prep, for example `first_use`: a folder of a clone, inside the package in a wheel."""
    if (PACKAGE / "data_prep").is_dir():
        return import_module(f"megaunigame.data_prep.{module}")
    if str(PACKAGE.parent) not in sys.path:
        sys.path.append(str(PACKAGE.parent))  # the clone, of a command that was started in another folder
    return import_module(f"data_prep.{module}")
