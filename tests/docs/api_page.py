"""docs/api.md: what `import megaunigame` offers, from signatures and docstrings."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator
from typing import Any

import megaunigame
from megaunigame import errors

HEAD = """\
# Python

This page is written by `python -m tests.docs.write_pages` from the source; do not edit it.

`import megaunigame` is free; what takes seconds to import is imported by the first call. Everything else of the package may
change between releases; what can be added to it is in [Extending](extending.md).
"""
ERRORS = """\
## Errors

In `megaunigame.errors`. Each message says what was found, what is legal and what to type.

| error | is a | when |
|---|---|---|
"""


def api_page() -> str:
    functions = [getattr(megaunigame, name) for name in megaunigame.__all__ if callable(getattr(megaunigame, name))]
    parts = [_described(f"megaunigame.{function.__name__}", function, "##") for function in functions]
    for kind in filter(None, map(_class_returned, functions)):
        parts += [f"## {kind.__name__}\n\n{inspect.getdoc(kind)}\n"]
        parts += [_described(name, method, "###") for name, method in _public_methods(kind)]
    return "\n".join([HEAD, *parts, ERRORS + "\n".join(map(_error_row, _error_classes())) + "\n"])


def _class_returned(function: Any) -> type | None:
    """The class of ours that a function returns, if it does."""
    kind = typing.get_type_hints(function).get("return")
    return kind if inspect.isclass(kind) and kind.__module__.startswith("megaunigame.") else None


def _public_methods(kind: type) -> Iterator[tuple[str, Any]]:
    """Those with a docstring, in the order of the source."""
    for name, member in vars(kind).items():
        if inspect.isfunction(member) and not name.startswith("_") and member.__doc__:
            yield name, member


def _described(name: str, function: Any, level: str) -> str:
    short = name.rpartition(".")[2]
    return f"{level} {short}\n\n```python\n{name}{_signature(function)}\n```\n\n{inspect.getdoc(function)}\n"


def _signature(function: Any) -> str:
    """As in the source, one argument a line where there are many."""
    signature = inspect.signature(function)
    arguments, only_named = [], False
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not only_named:
            arguments.append("*")
        only_named = only_named or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        arguments.append(f"{stars}{parameter.name}: {parameter.annotation}{default}")
    line = ", ".join(arguments)
    inside = f"\n    {f',{chr(10)}    '.join(arguments)},\n" if len(line) > 80 else line
    return f"({inside}) -> {signature.return_annotation}"


def _error_classes() -> list[type]:
    return [kind for kind in vars(errors).values() if inspect.isclass(kind) and kind.__module__ == errors.__name__]


def _error_row(kind: type) -> str:
    bases = ", ".join(f"`{base.__name__}`" for base in kind.__bases__)
    return f"| `{kind.__name__}` | {bases} | {' '.join((inspect.getdoc(kind) or '').split())} |"
