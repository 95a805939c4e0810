"""The command `megaunigame`, and how each of its commands begins.

A command is a module of `megaunigame/commands`, found by its name: its docstring is the help, `add_options(parser)` declares
the options, `run(options)` does the work. Modules import what takes seconds inside `run`, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import ast
import pkgutil
import sys
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from megaunigame import __version__
from megaunigame.errors import ConfigError
from megaunigame.launching import options_of, run_to_exit
from megaunigame.registry import unknown

COMMANDS = "megaunigame.commands"
FOLDER = Path(__file__).with_name("commands")
PASSES_ON = (argparse.PARSER, argparse.REMAINDER)
"""`nargs` of options that take all words after them."""
USAGE = """\
usage: megaunigame COMMAND [options]       megaunigame COMMAND --help shows examples

{commands}

First steps, on a CPU with `export DS_ACCELERATOR=cpu`:
  megaunigame prepare scenes --out shards/train --count 1000 --split train
  megaunigame prepare scenes --out shards/val --count 200 --split val
  megaunigame train tiny_sft --ranks 2
Recipes are found by name, and files that come with the package (launch/recipes, ds_configs, the tiny model) from any folder.
"""


def main(arguments: list[str] | None = None) -> NoReturn:
    """`megaunigame COMMAND ...`"""
    words = sys.argv[1:] if arguments is None else arguments
    while words and words[0].startswith("--local_rank"):  # `deepspeed --module megaunigame COMMAND` puts it first
        words = words[1:]
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        sys.exit(0 if words else 2)
    if words[0] == "--version":
        print(__version__)
        sys.exit(0)
    name, given = words[0].replace("-", "_"), words[1:]
    if name not in command_names():
        run_to_exit(_refuse, [words[0]])
    run_command(name, given)


def run_command(name: str, arguments: list[str]) -> NoReturn:
    """Run one command, and end the process with its exit code (megaunigame/launching.py)."""
    module = import_module(f"{COMMANDS}.{name}")

    def run(given: list[str]) -> None:
        module.run(parsed(name, given))

    run_to_exit(run, arguments)


def parsed(name: str, arguments: list[str]) -> argparse.Namespace:
    """The options of a command; `typed` is all that was typed, without what a launcher adds."""
    module = import_module(f"{COMMANDS}.{name}")
    parser = options_of(module.__doc__, f"megaunigame {typed_name(name)}")
    module.add_options(parser)
    # Settings (key=value) may follow options, which argparse takes of commands that do not pass words on.
    passes_on = any(action.nargs in PASSES_ON for action in parser._actions)
    options = parser.parse_args(arguments) if passes_on else parser.parse_intermixed_args(arguments)
    options.typed = [word for word in arguments if not word.startswith("--local_rank")]
    return options


def command_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules([str(FOLDER)]))


def typed_name(name: str) -> str:
    return name.replace("_", "-")


def usage() -> str:
    """Every command with the first line of its help. The modules are read and not imported."""
    lines = []
    for name in command_names():
        docstring = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))) or ""
        lines.append(f"  {typed_name(name):<18} {docstring.partition(chr(10))[0]}")
    return USAGE.format(commands="\n".join(lines))


def _refuse(words: list[str]) -> NoReturn:
    raise ConfigError(unknown("command", words[0], [typed_name(name) for name in command_names()]))
