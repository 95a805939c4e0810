"""Random plans and random data for tests/faults/lockstep.py: objectives, rows, rotation, odd samples, silent ranks."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest
from megaunigame.step.rows import Row, UnderstandRow
from tests.data.shard_files import encoded, talk, write_shards
from tests.multi_process.tiny_run import ANSWERS, FOLDERS, QUESTIONS, edit_sample, sample, write_family
from tests.multi_process.unigame import GAME

STEPS = 2
"""Of each plan: in the second one, what was mined in the first is replayed."""
BAD_EVERY = 3
LONG_EVERY = 5
"""More of them, and some sample would run out of substitutes in so many plans."""
KINDS = ALL, TEXT, UNDERSTANDING, GENERATION, NOTHING = ("all", "text", "understanding", "generation", "nothing")
"""What a rank has rows of; its other rows are dummies."""


def odd_sample(number: int) -> dict[str, bytes]:
    """Every third one cannot be used: JSON that ends early, a picture that ends early, a conversation without an answer."""
    fields = sample(5 * number + 1)
    if number % BAD_EVERY:
        return fields
    broken = {
        0: {"json": fields["json"][:-9]},
        1: {"png": fields["png"][: len(fields["png"]) // 2]},
        2: {"json": json.dumps({"conversations": [{"from": "human", "value": "?"}], "caption": "c"}).encode()},
    }
    return {**fields, **broken[number // BAD_EVERY % 3]}


def text_sample(number: int) -> dict[str, bytes]:
    return sample(5 * number)


def uneven_sample(number: int) -> dict[str, bytes]:
    """Answers of a few words, or of so many that the row cannot hold them; captions that fill the row, or are missing."""
    words = ANSWERS * (30 if number % LONG_EVERY == 1 else 1)
    meta: dict[str, Any] = {"conversations": talk((QUESTIONS[number % 3], " ".join(words[: 1 + number * 7 % len(words)])))}
    if number % 3:
        meta["caption"] = " ".join(["ball"] * (60 if number % 5 == 0 else 1))
    picture = torch.arange(16 * 16 * 3, dtype=torch.uint8).reshape(16, 16, 3).numpy() + number
    return {"json": json.dumps(meta).encode(), "png": encoded(picture)}


SHARDS = {"mixed": sample, "odd": odd_sample, "text only": text_sample, "uneven": uneven_sample, "edits": edit_sample}
INTERLEAVING = "bagel"
"""The family whose plans may have rows of edits."""


def write_home(home: Path, family: str = "janus") -> Path:
    """A random model of one family, and the shards."""
    write_family(home / FOLDERS[family], family)
    (home / "family").write_text(family)
    for name, fields in SHARDS.items():
        write_shards(home / name, [12, 12], fields=fields)
    shutil.copytree(home / "mixed", home / "shards")
    return home


def family_of(home: Path) -> dict[str, Any]:
    """The block `model` of a recipe in this home."""
    return {"family": (home / "family").read_text()}


def keeps(what: str, request: RowRequest, row: Row) -> bool:
    """Whether a rank that has `what` alone has this row; a row that it does not have is a dummy."""
    if what == TEXT:
        return isinstance(row, UnderstandRow) and not row.images
    return what == ALL or request.pass_name == {UNDERSTANDING: UNDERSTAND, GENERATION: GENERATE}.get(what)


@dataclass
class Drawn:
    """One random plan."""

    number: int
    settings: dict[str, Any]
    game: dict[str, Any] | None
    data: str
    has: tuple[str, ...]
    """What each rank has: one of KINDS."""
    rejects: bool
    """The filter of the game rejects every picture."""

    def __str__(self) -> str:
        return f"plan {self.number}: {self.settings}, data {self.data}, ranks with {self.has}, rejects {self.rejects}"


def draw(seed: int, number: int, home: Path, world_size: int) -> Drawn:
    """Plan `number` of a seed; the same on every rank."""
    rng = random.Random(f"{seed}/{number}")
    objectives: dict[str, Any] = {
        "understanding": {"rows": rng.choice((0, 1, 2)), "independent": rng.random() < 0.3, "turns": rng.choice((0, 0, 1))},
        "generation": {
            "caption_rows": rng.choice((0, 1, 2)),
            "pixel_rows": rng.choice((0, 0, 1)),
            "drop": rng.choice((0.0, 0.5)),
        },
    }
    game = None
    kind = rng.choice(("plain", "unimrg", "unimrg", "aia", "game", "game"))
    if kind == "unimrg":
        rows = {task: rng.choice((0, 1, 2)) for task in ("understanding", "edges", "pixel")}
        objectives["unimrg"] = {"rows": rows, "schedule": rng.choice(("all", "round_robin", "sampled")), "drop": 0.3}
        if rng.random() < 0.5:
            objectives["understanding"]["rows"] = objectives["generation"]["caption_rows"] = 0
            objectives["generation"]["pixel_rows"] = 0
    elif kind == "aia":
        objectives["aia"] = {"targets": "relative", "weights": {"generate": 5.0, "understand": 10.0}}
        objectives["understanding"]["rows"] = max(1, objectives["understanding"]["rows"])
    elif kind == "game":
        mode = rng.choice(("alternating", "simultaneous"))
        game = {
            **GAME,
            "clean_rows": rng.choice((0, 1, 2)),
            "hard_rows": rng.choice((0, 1, 2)),
            "attack_rows": rng.choice((1, 2)),
        }
        game |= {"mode": mode, "path": rng.choice(("decoder", "embedding")), "pictures_every": rng.choice((0, 1))}
        game |= {"every": rng.choice((1, 1, 2)), "attack_on": "stream", "clip": {"model": "tiny-random", "tau": -1.0}}
        game["buffer"] = {**GAME["buffer"], "merge_every": 1, "capacity": rng.choice((2, 6))}
        objectives["unigame"] = game
    settings = {
        "model": family_of(home),
        "objectives": objectives,
        "batch": {"accumulation": rng.choice((1, 1, 2, 3))},
        "data": {"train": {"shards": "", "window": 2}},
        "loader": {"workers": 0, "max_bad_fraction": 1.0, "max_dummy_fraction": 1.0},
        "seed": rng.randrange(1000),
        "schedule": {"steps": STEPS},
    }
    data = rng.choice(("mixed", "mixed", "odd", "text only", "uneven"))
    settings["data"]["train"]["shards"] = str(home / data)
    silent = rng.choice((None, None, *range(world_size)))
    rejects = game is not None and rng.random() < 0.3
    has = [rng.choice((ALL, TEXT, UNDERSTANDING, GENERATION)) if rng.random() < 0.5 else ALL for _ in range(world_size)]
    if silent is not None:
        has[silent] = NOTHING
    if settings["model"]["family"] == INTERLEAVING and rng.random() < 0.5:
        data = settings["data"]["train"]["shards"] = "edits"
        objectives["editing"] = {"rows": rng.choice((1, 2)), "sources": rng.choice((2, 3)), "history": rng.choice((0, 2))}
    return Drawn(number, settings, game, data, tuple(has), rejects)
