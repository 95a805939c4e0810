"""Settings: strict dataclasses filled from YAML; each field declares its legal values.

    @dataclass
    class Rows:
        count: int = at_least(0, 4)
        drop: float = half_open(0, 1, 0.1)
        schedule: str = one_of(SCHEDULES, "all")
        weights: dict[str, float] = at_least(0, dict)

The default, or its factory (`dict`), comes last. The bound of a mapping or a list applies to every entry; None, if the type
allows it, means "not given" and is legal. A relation between fields is checked by a method `check(path)` of the dataclass,
which raises ConfigError; it is called once all bounds hold.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from megaunigame.errors import ConfigError
from megaunigame.registry import unknown
from megaunigame.shipped import located, yaml_file

T = TypeVar("T")
BOUND = "bound"
"""Key of a field's metadata."""


@dataclass(frozen=True)
class Bound:
    """What a field accepts, and the message for anything else."""

    accepts: Callable[[Any], bool]
    refusal: Callable[[str, Any], str]
    """(full key, value) -> the message."""
    legal: str | tuple[str, ...]
    """The legal values, for people: a phrase, or their names."""


def at_least(low: float, default: T | Callable[[], T]) -> T:
    """A field in [low, infinity)."""
    return _number(lambda got: got >= low, "be", f"at least {low}", default)


def above(low: float, default: T | Callable[[], T]) -> T:
    """A field in (low, infinity)."""
    return _number(lambda got: got > low, "be", f"greater than {low}", default)


def between(low: float, high: float, default: T | Callable[[], T]) -> T:
    """A field in [low, high]."""
    return _number(lambda got: low <= got <= high, "lie", f"in [{low}, {high}]", default)


def half_open(low: float, high: float, default: T | Callable[[], T]) -> T:
    """A field in [low, high)."""
    return _number(lambda got: low <= got < high, "lie", f"in [{low}, {high})", default)


def one_of(legal: Collection[str], default: T | Callable[[], T], unsupported: Mapping[str, str] | None = None) -> T:
    """A field with one of these names. `unsupported`: names that other trainers have -> why they are not legal here."""
    names, reasons = tuple(legal), unsupported or {}

    def message(key: str, got: Any) -> str:
        if got in reasons:
            return f"{key}={got} is not supported: {reasons[got]} Legal: {', '.join(names)}."
        return unknown(f"value of {key}", got, list(names))

    return _bounded(Bound(lambda got: got in names, message, names), default)


def _number(accepts: Callable[[Any], bool], verb: str, legal: str, default: T | Callable[[], T]) -> T:
    hint = f" Default: {default}." if isinstance(default, int | float) else ""
    return _bounded(Bound(accepts, lambda key, got: f"{key} must {verb} {legal}; got {got}.{hint}", legal), default)


def _bounded(bound: Bound, default: Any) -> Any:
    if callable(default):
        return field(default_factory=default, metadata={BOUND: bound})
    return field(default=default, metadata={BOUND: bound})


def read(path: str, overrides: list[str], kind: str, folder: str) -> Any:
    """The mapping in a YAML file, with `key.sub=value` overrides: YAML values, each replacing the value of its key.

    `path` may be the name of a shipped file of `folder` (megaunigame/shipped.py). Raises ConfigError when the file is missing
    or not a mapping; `kind` names such files.
    """
    path = yaml_file(path, folder, kind)
    try:
        given = OmegaConf.load(path)
        if not isinstance(given, DictConfig):
            raise ConfigError(f"{path} must hold a mapping of settings at its top level.")
        for override in overrides:
            key, _, value = override.partition("=")
            # Replaced, not merged: `evaluation.suites={}` means no suites.
            OmegaConf.update(given, key, OmegaConf.create({"value": yaml.safe_load(value)}).value, merge=False)
        return _full_paths(OmegaConf.to_container(given, resolve=True))
    # OSError, ValueError: a file that may not be read, is not UTF-8, or has a date that does not exist.
    except (OmegaConfBaseException, yaml.YAMLError, OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} is not a legal YAML {kind}: {error}") from error


def _full_paths(value: Any) -> Any:
    """`value` with `~/` at the beginning of a text replaced by the home folder, which a shell does not do after `key=`; and
    with shipped files at their places."""
    if isinstance(value, dict):
        return {key: _full_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_full_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    return str(Path(value).expanduser()) if value.startswith("~/") else located(value)


def fill(schema: type[T], given: Any, path: str) -> T:
    """An instance of the dataclass `schema` with the values of the mapping `given`; `path` is the key of `given`.

    Raises ConfigError with the full key of a setting that is unknown (and the nearest legal key), missing, of a wrong type or
    out of bounds.
    """
    check_keys(schema, given, path)
    try:
        filled: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), given))
    except OmegaConfBaseException as error:
        said = str(error.msg or error).splitlines()[0].rstrip(".")  # OmegaConf adds lines about its own classes
        raise ConfigError(f"Setting {_under(path, error.full_key)!r}: {said}.{_legal(schema, error.full_key or '')}") from error
    check_values(filled, path)
    return filled


def _legal(schema: Any, key: str) -> str:
    """The legal values of a key inside `schema`, where its field declares them."""
    first, _, rest = key.partition(".")
    found = next((f for f in dataclasses.fields(schema) if f.name == first.partition("[")[0]), None)
    if found is None:
        return ""
    kind = typing.get_type_hints(schema)[found.name]
    inner = next((part for part in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(part)), None)
    if rest and inner is not None:
        return _legal(inner, rest.partition(".")[2] if typing.get_origin(kind) is dict else rest)
    bound = found.metadata.get(BOUND)
    if bound is None:
        return ""
    legal = bound.legal if isinstance(bound.legal, str) else ", ".join(bound.legal)
    default = f" Default: {found.default}." if isinstance(found.default, int | float | str) else ""
    return f" Legal: {legal}.{default}"


def check_keys(schema: Any, given: Any, path: str) -> None:
    """Refuse unknown keys, at any depth, naming the nearest legal key."""
    if not isinstance(given, dict):
        raise ConfigError(f"Setting {path or 'recipe'!r} must be a mapping of settings; got {given!r}.")
    types = typing.get_type_hints(schema)
    fields = [f.name for f in dataclasses.fields(schema)]
    for key, value in given.items():
        if key not in fields and key in getattr(schema, "elsewhere", {}):
            typed = schema.elsewhere[key]
            raise ConfigError(
                f"{_under(path, key)} is not a setting: type {typed if '=' in typed else f'{typed}=...'} instead."
            )
        if key not in fields and key in getattr(schema, "unsupported", {}):
            raise ConfigError(f"{_under(path, key)} is not supported: {schema.unsupported[key]}")
        if key not in fields:
            raise ConfigError(f"In {path or 'the recipe'}: {unknown('key', str(key), fields)}")
        where, kind, parts = _under(path, key), types[key], typing.get_args(types[key])
        deeper = (inside for part in parts for inside in typing.get_args(part))  # of dict[str, Part | None]
        inner = next((part for part in (kind, *parts, *deeper) if dataclasses.is_dataclass(part)), None)
        if typing.get_origin(kind) is dict:
            if not isinstance(value, dict | None):
                raise ConfigError(f"Setting {where!r} must be a mapping of settings; got {value!r}.")
            if inner:
                may_be_none = any(type(None) in typing.get_args(part) for part in parts)
                for name, item in (value or {}).items():
                    if item is not None or not may_be_none:
                        check_keys(inner, item, f"{where}.{name}")
        elif inner and (value is not None or type(None) not in parts):
            check_keys(inner, value, where)


def check_values(settings: Any, path: str) -> None:
    """Refuse a value out of bounds, at any depth, and what the dataclasses' `check` refuses. `fill` does this; call it for
    settings built in code from user input."""
    for f in dataclasses.fields(settings):
        _check_value(getattr(settings, f.name), f.metadata.get(BOUND), _under(path, f.name))
    if hasattr(settings, "check"):
        settings.check(path)


def _check_value(value: Any, bound: Bound | None, key: str) -> None:
    if dataclasses.is_dataclass(value):
        check_values(value, key)
    elif isinstance(value, dict):
        for name, item in value.items():
            _check_value(item, bound, f"{key}.{name}")
    elif isinstance(value, list):
        for place, item in enumerate(value):
            _check_value(item, bound, f"{key}[{place}]")
    elif bound and value is not None and not bound.accepts(value):
        raise ConfigError(bound.refusal(key, value))


def _under(path: str, key: Any) -> str:
    return ".".join(str(part) for part in (path, key) if part)
