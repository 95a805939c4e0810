"""The settings of strict dataclasses as data: key, type, legal values, default and meaning of each.

What a field means stands in the string below it in the source, which Python itself does not keep; so this reads the source.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from omegaconf import MISSING

from megaunigame.settings import BOUND

NAME = "NAME"
"""In a key: a name that the user chooses."""
REQUIRED = "required"


@dataclass(frozen=True)
class Setting:
    """One key."""

    key: str
    """Without the path of its section."""
    type: str
    legal: str | tuple[str, ...]
    """Its bound for people: a phrase such as "at least 0", or the legal names; "": anything of the type."""
    default: str
    """As it would be typed, or `REQUIRED`."""
    meaning: str
    """"" for a field without a string below it."""

    @property
    def values(self) -> str:
        """Type and legal values in one phrase: `int, at least 1`."""
        if isinstance(self.legal, str):
            return f"{self.type}, {self.legal}" if self.legal else self.type
        return f"{self.type}: {', '.join(self.legal)}"


@dataclass(frozen=True)
class Section:
    """The settings under one key of a recipe."""

    path: str
    """`optimizer`, or `data.NAME.cache`; "": the top level."""
    meaning: str
    """Docstring of the dataclass; may be empty."""
    settings: tuple[Setting, ...]

    def full_key(self, setting: Setting) -> str:
        return f"{self.path}.{setting.key}" if self.path else setting.key


def sections(schema: type, path: str) -> list[Section]:
    """The settings of the dataclass `schema`, whose key is `path`, then those of the dataclasses in its fields."""
    hints, meanings = typing.get_type_hints(schema), _meanings(schema)
    own: list[Setting] = []
    inner: list[Section] = []
    for field in dataclasses.fields(schema):
        part, is_mapping = _dataclass_in(hints[field.name])
        if part is not None:
            below = f"{path}.{field.name}" if path else field.name
            inner += sections(part, f"{below}.{NAME}" if is_mapping else below)
        if part is None or is_mapping or field.default is None:
            legal = field.metadata[BOUND].legal if BOUND in field.metadata else ""
            own.append(Setting(field.name, _type_name(hints[field.name]), legal, _default(field), meanings.get(field.name, "")))
    return [Section(path, _docstring(schema), tuple(own)), *inner]


def _dataclass_in(hint: Any) -> tuple[type | None, bool]:
    """(the dataclass in `Part`, `Part | None` or `dict[str, Part | None]`, whether it is in a mapping); None: there is none."""
    if dataclasses.is_dataclass(hint):
        return typing.cast(type, hint), False
    parts = typing.get_args(hint)
    is_mapping = typing.get_origin(hint) is dict
    found = next((part for part, _ in map(_dataclass_in, parts[1:] if is_mapping else parts) if part is not None), None)
    return found, is_mapping


def _type_name(hint: Any) -> str:
    """`int`, `list[str]`, `float or null`; a dataclass is a mapping."""
    if dataclasses.is_dataclass(hint):
        return "mapping"
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if part is type(None) else _type_name(part) for part in parts)
    if origin is dict:
        return "mapping" if parts[1] is Any or _dataclass_in(hint)[0] else f"mapping of {_type_name(parts[1])}"
    if origin is list:
        return f"list of {_type_name(parts[0])}"
    return {str: "text", bool: "bool"}.get(hint, getattr(hint, "__name__", str(hint)))


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING or value == MISSING:
        return REQUIRED
    if isinstance(value, str):
        return value or '""'
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()


def _meanings(schema: type) -> dict[str, str]:
    """Field -> the string below it, in the class or the nearest base that has one."""
    found: dict[str, str] = {}
    for kind in reversed(schema.__mro__):
        if dataclasses.is_dataclass(kind):
            found |= dict(_strings_below_fields(kind))
    return found


def _strings_below_fields(kind: type) -> Iterator[tuple[str, str]]:
    body = _class_body(kind)
    for statement, following in zip(body, body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = following.value if isinstance(following, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                yield statement.target.id, inspect.cleandoc(text.value)


def _class_body(kind: type) -> list[ast.stmt]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    return definition.body


def _docstring(kind: type) -> str:
    """Not `__doc__`, which is a signature where a dataclass has none."""
    first = _class_body(kind)[0]
    text = first.value if isinstance(first, ast.Expr) else None
    return inspect.cleandoc(text.value) if isinstance(text, ast.Constant) and isinstance(text.value, str) else ""
