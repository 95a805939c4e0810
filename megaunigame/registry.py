"""Names are module names: `objectives: {understanding: ...}` is the class in `megaunigame/objectives/understanding.py`.

No list to edit: a file dropped into its folder is found.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from typing import TypeVar

from megaunigame.errors import ConfigError

T = TypeVar("T")


def available(room: str, base: type, house: str = "megaunigame") -> list[str]:
    """Names of the modules in `<house>/<room>` that define a subclass of `base`; other modules are not names."""
    package = importlib.import_module(f"{house}.{room}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if _classes(package.__name__, m.name, base))


def find(room: str, name: str, base: type[T], house: str = "megaunigame") -> type[T]:
    """The subclass of `base` that the module `<house>.<room>.<name>` defines.

    Raises ConfigError unless the module exists and defines exactly one such class.
    """
    package = importlib.import_module(f"{house}.{room}")
    if name not in {m.name for m in pkgutil.iter_modules(package.__path__)}:
        raise ConfigError(unknown(f"{room} name", name, available(room, base, house)))
    found = _classes(package.__name__, name, base)
    if len(found) != 1:
        raise ConfigError(f"{house}/{room}/{name} must define exactly one {base.__name__}; found {len(found)}.")
    return found[0]


def _classes(package: str, name: str, base: type[T]) -> list[type[T]]:
    """Concrete subclasses of `base` that a module (or a module of its package) defines; imported ones do not count."""
    module = importlib.import_module(f"{package}.{name}")
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
