"""Names are module names: `objectives: {understanding: ...}` is the class in `megaunigame/objectives/understanding.py`.

No list to edit: a file dropped into its folder is found. So is one in a plugin of the recipe (`plugins: [my_module]`).
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import TypeVar

from megaunigame.errors import ConfigError

T = TypeVar("T")


HOUSE = "megaunigame"
_plugins: list[str] = []
"""Modules that this process looks into besides ours: those of all recipes that it has read. Written by `use_plugins`."""


def use_plugins(modules: Sequence[str]) -> None:
    """Import these modules, and find names in them too.

    A plugin is a package whose folders are called as ours, or one file: its module name is then the name of what it defines.
    Raises ConfigError for a module that does not exist; an error inside of it is raised as it is.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise  # the plugin is there, and something that it imports is not
            raise ConfigError(
                f"plugins: no module {module!r} in the folders that Python looks into. If it is in the working folder, type "
                "PYTHONPATH=. before the command."
            ) from error
    _plugins.extend(module for module in modules if module not in _plugins)


def available(room: str, base: type, house: str = HOUSE) -> list[str]:
    """Names of the modules in `<house>/<room>` that define a subclass of `base`, and of those of plugins; other modules are not
    names."""
    return sorted({name for name, module in _modules(room, house) if _classes(module, base)})


def find(room: str, name: str, base: type[T], house: str = HOUSE) -> type[T]:
    """The subclass of `base` that the module `<house>.<room>.<name>` defines, or a plugin.

    Raises ConfigError unless one module has this name and defines exactly one such class.
    """
    modules = [module for other, module in _modules(room, house) if other == name]
    if not modules:
        raise ConfigError(unknown(f"{room} name", name, available(room, base, house)))
    # A plugin of one file is looked at for every room, and defines something of one.
    defining = [module for module in modules if _classes(module, base)]
    if len(defining) > 1:
        raise ConfigError(f"{room} name {name!r} is defined twice, by {' and by '.join(defining)}. Rename the one in a plugin.")
    modules = defining or modules
    found = _classes(modules[0], base)
    if len(found) != 1:
        raise ConfigError(f"{modules[0].replace('.', '/')} must define exactly one {base.__name__}; found {len(found)}.")
    return found[0]


def _modules(room: str, house: str) -> Iterator[tuple[str, str]]:
    """(name, module) of every module of a room. A module of a plugin need not define what belongs there."""
    yield from _inside(f"{house}.{room}")
    for plugin in _plugins if house == HOUSE else ():
        if not hasattr(sys.modules[plugin], "__path__"):
            yield plugin.rpartition(".")[2], plugin
        elif find_spec(f"{plugin}.{room.partition('.')[0]}") and find_spec(f"{plugin}.{room}"):
            yield from _inside(f"{plugin}.{room}")


def _inside(package: str) -> Iterator[tuple[str, str]]:
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        yield module.name, f"{package}.{module.name}"


def _classes(name: str, base: type[T]) -> list[type[T]]:
    """Concrete subclasses of `base` that a module (or a module of its package) defines; imported ones do not count."""
    module = importlib.import_module(name)
    concrete = inspect.getmembers(module, lambda member: inspect.isclass(member) and not inspect.isabstract(member))
    mine = (member for _, member in concrete if f"{member.__module__}.".startswith(f"{module.__name__}."))
    return [member for member in mine if issubclass(member, base)]


def unknown(kind: str, got: str, legal: list[str]) -> str:
    """The message for a name that does not exist, with the nearest legal one."""
    return f"Unknown {kind} {got!r}.{nearest(got, legal)} Legal: {', '.join(legal)}."


def nearest(got: str, legal: list[str]) -> str:
    """The hint at the nearest legal name, if any is near."""
    near = difflib.get_close_matches(got, legal, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
