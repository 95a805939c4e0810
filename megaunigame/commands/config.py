"""Show the settings of recipes, objectives, adversaries and evaluation suites: key, legal values, default, meaning.

    megaunigame config                        every key with its default
    megaunigame config optimizer              keys that have this word in them, with what they mean
    megaunigame config warmup gradient        keys that have one of these words in them

The same as a page: docs/config.md.
"""

from __future__ import annotations

import argparse
import textwrap

from megaunigame.errors import ConfigError
from megaunigame.registry import nearest


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="WORD", help="a key, or a part of one")


def run(options: argparse.Namespace) -> None:
    from megaunigame.reference.parts import all_parts, all_settings

    keys = {}
    for part, section, setting in all_settings(all_parts()):
        keys[f"{section.full_key(setting)}{f'   ({part.kind} {part.name})' if part.name else ''}"] = setting
    if not options.words:
        for key, setting in keys.items():
            print(f"{key:<72} {setting.default}")
        return
    shown = {key: setting for key, setting in keys.items() if any(word in key for word in options.words)}
    if not shown:
        parts = sorted({part for key in keys for part in key.partition(" ")[0].split(".")})
        near = nearest(options.words[0].rpartition(".")[2], parts)
        raise ConfigError(f"No key has {' or '.join(options.words)} in it.{near} `megaunigame config` lists all.")
    for key, setting in shown.items():
        default = setting.default if setting.default == "required" else f"default {setting.default}"
        print(f"{key}\n    {setting.values}; {default}")
        print(textwrap.indent(textwrap.fill(" ".join(setting.meaning.split()), 100), "    ") + "\n")
