"""The parts of the tiny world in order, each from the scenes and earlier parts."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megaunigame.tiny_world import tokenizer_text
from megaunigame.tiny_world.clip_training import clip_tokenizer, evaluate_clip, train_clip
from megaunigame.tiny_world.loop import LoopSettings
from megaunigame.tiny_world.oracle_training import evaluate_oracle, train_oracle
from megaunigame.tiny_world.scenes import Scenes, load_scenes
from megaunigame.tiny_world.start_folder import TEXT_FOLDER, write_start_folder
from megaunigame.tiny_world.tokenizer_training import (
    TokenizerSettings,
    evaluate_tokenizer,
    load_tokenizer,
    train_tokenizer,
)
from megaunigame.tiny_world.tower_warmup import evaluate_tower, train_tower

PARTS = ("text", "vq", "tower", "oracle", "folder", "clip")
TRAININGS = {"vq": (2600, 1.2e-3), "tower": (1200, 1.5e-3), "oracle": (1200, 2e-3), "clip": (900, 1.5e-3)}
"""Default number of steps, and learning rate; measured times are in the model card."""


@dataclass(frozen=True)
class PartSettings:
    """Folders and settings of all parts."""

    data: Path
    """Folder with `train` and `val` scenes; CLIP is also evaluated on `adversarial` ones, if present."""
    out: Path
    seed: int
    steps: int | None = None
    """Steps of a training; None: those of TRAININGS."""

    def loop(self, part: str) -> LoopSettings:
        steps, learning_rate = TRAININGS[part]
        return LoopSettings(self.steps or steps, learning_rate, self.seed)

    def scenes(self, split: str, limit: int | None = None) -> Scenes:
        return load_scenes(self.data / split, limit)


def make_part(name: str, settings: PartSettings) -> dict[str, Any]:
    """Make one part and write its numbers to `out`/NAME.json. An interrupted training continues."""
    began = time.monotonic()
    makers = {"text": _text, "vq": _vq, "tower": _tower, "oracle": _oracle, "folder": _folder, "clip": _clip}
    numbers = ({"steps": settings.loop(name).steps} if name in TRAININGS else {}) | makers[name](settings)
    numbers["wall_minutes_of_this_start"] = round((time.monotonic() - began) / 60, 2)
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / f"{name}.json").write_text(json.dumps(numbers, indent=2) + "\n")
    return numbers


def _text(settings: PartSettings) -> dict[str, Any]:
    tokenizer = tokenizer_text.train_text_tokenizer(tokenizer_text.sentences(settings.data / "train"))
    tokenizer.save_pretrained(settings.out / TEXT_FOLDER)
    counts = tokenizer_text.token_counts(tokenizer, tokenizer_text.sentences(settings.data / "val"))
    return {"vocabulary": len(tokenizer), "val": counts}


def _vq(settings: PartSettings) -> dict[str, Any]:
    tokenizer = train_tokenizer(settings.scenes("train"), settings.out, settings.loop("vq"), TokenizerSettings())
    return {"val": evaluate_tokenizer(tokenizer, settings.scenes("val", 256))}


def _tower(settings: PartSettings) -> dict[str, Any]:
    tower = train_tower(settings.scenes("train"), settings.out, settings.loop("tower"))
    return {"val": evaluate_tower(tower, settings.scenes("val", 512))}


def _oracle(settings: PartSettings) -> dict[str, Any]:
    tokenizer = load_tokenizer(settings.out)
    oracle = train_oracle(settings.scenes("train"), tokenizer, settings.out, settings.loop("oracle"))
    scores = evaluate_oracle(oracle, tokenizer, settings.scenes("val", 512))
    return {"val": {name: asdict(s) for name, s in scores.items()}}


def _folder(settings: PartSettings) -> dict[str, Any]:
    return {"parameters": write_start_folder(settings.out, settings.seed)}


def _clip(settings: PartSettings) -> dict[str, Any]:
    vq, text = load_tokenizer(settings.out), settings.out / TEXT_FOLDER
    val = settings.scenes("val", 512)
    pairs = settings.scenes("adversarial") if (settings.data / "adversarial").is_dir() else None
    clip = train_clip(settings.scenes("train"), vq, text, settings.out, settings.loop("clip"))
    numbers = evaluate_clip(clip, vq, clip_tokenizer(text), val, pairs)
    return {"parameters": sum(p.numel() for p in clip.parameters()), "val": numbers}
