"""Settings that give what is saved of the game its meaning: a resumed run has the same ones, or says what it changes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from megaunigame.adversary.base import Adversary
from megaunigame.errors import CheckpointError
from megaunigame.objectives.unigame.settings import Settings

ROOT, ADVERSARY = "objectives.unigame", "adversary."


def described(config: Settings, adversary: Adversary) -> dict[str, Any]:
    """Key below `ROOT` -> value, as JSON values.

    A perturbation is learned for a path and in units of the budget, and losses of two modes, or two kinds of hardness, cannot
    be ranked in one buffer.
    """
    game = {"mode": config.mode, "path": config.path, "buffer.hardness": config.buffer.hardness}
    own = {ADVERSARY + key: value for key, value in dataclasses.asdict(adversary.config).items()}
    whole = {**game, f"{ADVERSARY}kind": config.adversary["kind"], **own}
    return json.loads(json.dumps(whole))  # a tuple comes back as a list


def changes(folder: Path, saved: dict[str, Any], now: dict[str, Any], adversary: Adversary) -> list[str]:
    """What is other than when the game was saved, and may be. Raises CheckpointError for what may not.

    `saved`, `now`: as `described`. What one of them lacks is not known, and not compared.
    """
    other = [key for key, value in now.items() if saved.get(key, value) != value]
    legal = {ADVERSARY + key for key in adversary.adjustable}
    refused = [key for key in other if key not in legal]
    if refused:
        between = "; ".join(f"{ROOT}.{key}={saved[key]}, this run has {now[key]}" for key in refused)
        same = " ".join(f"{ROOT}.{key}={saved[key]}" for key in refused)
        raise CheckpointError(
            f"{folder} was saved by another game: {between}. Type {same} to go on with it; or give another `output`, with "
            f"model.weights_from={folder} to begin with these weights."
        )
    return [f"{ROOT}.{key} was {saved[key]}, and is {now[key]} from here on" for key in other]
