"""Commands in the process of a test."""

from __future__ import annotations

from importlib import import_module

from megaunigame.command_line import COMMANDS, parsed


def run_here(name: str, words) -> None:
    """`megaunigame NAME WORDS`, without its exit code: errors are raised."""
    import_module(f"{COMMANDS}.{name}").run(parsed(name, [str(word) for word in words]))
