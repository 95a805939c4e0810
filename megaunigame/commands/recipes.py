"""List the recipes that come with the package, show one, or copy one to change it.

    megaunigame recipes                                       names, and what each is for
    megaunigame recipes show janus_pro_7b_sft                 the whole file: its header has the commands, memory and cost
    megaunigame recipes copy janus_pro_7b_sft --to my.yaml

Every command that takes a recipe takes a name too: megaunigame train janus_pro_7b_sft.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megaunigame.errors import ConfigError
from megaunigame.shipped import RECIPES, names, yaml_file


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", choices=["list", "show", "copy"], default="list")
    parser.add_argument("name", nargs="?", help="of a recipe, for show and copy")
    parser.add_argument("--to", type=Path, help="new file, for copy; default: NAME.yaml here")


def run(options: argparse.Namespace) -> None:
    if options.what == "list":
        tiny = [name for name in names(RECIPES) if name.startswith("tiny_")]
        listed("On two CPU processes", tiny)
        listed("On GPUs, and your own", [name for name in names(RECIPES) if name not in tiny])
        return
    if options.name is None:
        raise ConfigError(f"Give the name of a recipe: megaunigame recipes {options.what} {names(RECIPES)[0]}.")
    source = Path(yaml_file(options.name, RECIPES, "recipe"))
    if options.what == "show":
        print(source.read_text(encoding="utf-8"), end="")
        return
    target = options.to or Path(f"{source.stem}.yaml")
    try:
        with open(target, "x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8"))
    except FileExistsError as error:
        raise ConfigError(f"{target} exists. Give another file with --to.") from error
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error.strerror}. Give another file with --to.") from error
    print(f"{target}: a copy of {source}. Train with: megaunigame train {target}")


def listed(title: str, recipes: list[str]) -> None:
    print(f"{title}:")
    for name in recipes:
        print(f"  {name:<26} {purpose(Path(yaml_file(name, RECIPES, 'recipe')))}")


def purpose(recipe: Path) -> str:
    """The first sentence of a recipe's header."""
    lines = []
    for line in recipe.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        lines.append(line[2:])
    text = " ".join(lines)
    first, end, _ = text.partition(". ")
    return first + end.strip()
