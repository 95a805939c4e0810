"""The stages in order, each from the scenes and the results of earlier stages."""

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
from megaunigame.tiny_world.scenes import load_scenes
from megaunigame.tiny_world.start_folder import TEXT_FOLDER, write_start_folder
from megaunigame.tiny_world.tokenizer_training import (
    TokenizerSettings,
    evaluate_tokenizer,
    load_tokenizer,
    train_tokenizer,
)
from megaunigame.tiny_world.tower_warmup import evaluate_tower, train_tower

STAGES = ("text", "vq", "tower", "oracle", "folder", "clip")
STEPS = {"vq": 2600, "tower": 1200, "oracle": 1200, "clip": 900}
"""Default lengths; measured times are in the model card."""
LEARNING_RATES = {"vq": 1.2e-3, "tower": 1.5e-3, "oracle": 2e-3, "clip": 1.5e-3}


@dataclass(frozen=True)
class StageSettings:
    """Folders and settings of all stages."""

    data: Path
    """Folder with `train` and `val` scenes; the clip stage also evaluates on `adversarial` ones, if present."""
    out: Path
    seed: int
    steps: int | None = None
    """Steps of the trained stages; None: STEPS."""

    def loop(self, stage: str) -> LoopSettings:
        return LoopSettings(steps=self.steps or STEPS[stage], learning_rate=LEARNING_RATES[stage], seed=self.seed)


def run_stage(name: str, settings: StageSettings) -> dict[str, Any]:
    """Run one stage and write its numbers to `out`/NAME.json. An interrupted stage continues."""
    began = time.monotonic()
    stages = {"text": _text, "vq": _vq, "tower": _tower, "oracle": _oracle, "folder": _folder, "clip": _clip}
    numbers = stages[name](settings)
    numbers["wall_minutes_of_this_start"] = round((time.monotonic() - began) / 60, 2)
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / f"{name}.json").write_text(json.dumps(numbers, indent=2) + "\n")
    return numbers


def _text(settings: StageSettings) -> dict[str, Any]:
    tokenizer = tokenizer_text.train_text_tokenizer(tokenizer_text.sentences(settings.data / "train"))
    tokenizer.save_pretrained(settings.out / TEXT_FOLDER)
    counts = tokenizer_text.token_counts(tokenizer, tokenizer_text.sentences(settings.data / "val"))
    return {"vocabulary": len(tokenizer), "val": counts}


def _vq(settings: StageSettings) -> dict[str, Any]:
    scenes = load_scenes(settings.data / "train")
    tokenizer = train_tokenizer(scenes, settings.out, settings.loop("vq"), TokenizerSettings())
    return {
        "steps": settings.loop("vq").steps,
        "val": evaluate_tokenizer(tokenizer, load_scenes(settings.data / "val", limit=256)),
    }


def _tower(settings: StageSettings) -> dict[str, Any]:
    tower = train_tower(load_scenes(settings.data / "train"), settings.out, settings.loop("tower"))
    return {"steps": settings.loop("tower").steps, "val": evaluate_tower(tower, load_scenes(settings.data / "val", limit=512))}


def _oracle(settings: StageSettings) -> dict[str, Any]:
    tokenizer = load_tokenizer(settings.out)
    oracle = train_oracle(load_scenes(settings.data / "train"), tokenizer, settings.out, settings.loop("oracle"))
    scores = evaluate_oracle(oracle, tokenizer, load_scenes(settings.data / "val", limit=512))
    return {"steps": settings.loop("oracle").steps, "val": {name: asdict(s) for name, s in scores.items()}}


def _folder(settings: StageSettings) -> dict[str, Any]:
    return {"parameters": write_start_folder(settings.out, settings.seed)}


def _clip(settings: StageSettings) -> dict[str, Any]:
    vq = load_tokenizer(settings.out)
    val = load_scenes(settings.data / "val", limit=512)
    pairs = load_scenes(settings.data / "adversarial") if (settings.data / "adversarial").is_dir() else None
    clip = train_clip(load_scenes(settings.data / "train"), vq, settings.out / TEXT_FOLDER, settings.out, settings.loop("clip"))
    numbers = evaluate_clip(clip, vq, clip_tokenizer(settings.out / TEXT_FOLDER), val, pairs)
    return {"steps": settings.loop("clip").steps, "parameters": sum(p.numel() for p in clip.parameters()), "val": numbers}
