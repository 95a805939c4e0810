"""The stages in their order, each from the scenes and the results of the ones before it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
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
class Run:
    """Where a run reads and writes."""

    data: Path
    """Folder with `train` and `val` scenes; the clip stage also measures itself on `adversarial` ones when it has them."""
    out: Path
    seed: int
    steps: int | None = None
    """Steps of the trained stages; None: STEPS."""

    def loop(self, stage: str) -> LoopSettings:
        return LoopSettings(steps=self.steps or STEPS[stage], learning_rate=LEARNING_RATES[stage], seed=self.seed)


def run_stage(name: str, run: Run) -> dict[str, Any]:
    """Run one stage and write its numbers to `out`/NAME.json. A stage that was interrupted continues."""
    began = time.monotonic()
    stages = {"text": _text, "vq": _vq, "tower": _tower, "oracle": _oracle, "folder": _folder, "clip": _clip}
    numbers = stages[name](run)
    numbers["wall_minutes_of_this_start"] = round((time.monotonic() - began) / 60, 2)
    run.out.mkdir(parents=True, exist_ok=True)
    (run.out / f"{name}.json").write_text(json.dumps(numbers, indent=2) + "\n")
    return numbers


def _text(run: Run) -> dict[str, Any]:
    tokenizer = tokenizer_text.train_text_tokenizer(tokenizer_text.sentences(run.data / "train"))
    tokenizer.save_pretrained(run.out / TEXT_FOLDER)
    counts = tokenizer_text.token_counts(tokenizer, tokenizer_text.sentences(run.data / "val"))
    return {"vocabulary": len(tokenizer), "val": counts}


def _vq(run: Run) -> dict[str, Any]:
    scenes = load_scenes(run.data / "train")
    tokenizer = train_tokenizer(scenes, run.out, run.loop("vq"), TokenizerSettings())
    return {
        "steps": run.loop("vq").steps,
        "val": evaluate_tokenizer(tokenizer, load_scenes(run.data / "val", limit=256)),
    }


def _tower(run: Run) -> dict[str, Any]:
    tower = train_tower(load_scenes(run.data / "train"), run.out, run.loop("tower"))
    return {"steps": run.loop("tower").steps, "val": evaluate_tower(tower, load_scenes(run.data / "val", limit=512))}


def _oracle(run: Run) -> dict[str, Any]:
    tokenizer = load_tokenizer(run.out)
    oracle = train_oracle(load_scenes(run.data / "train"), tokenizer, run.out, run.loop("oracle"))
    scores = evaluate_oracle(oracle, tokenizer, load_scenes(run.data / "val", limit=512))
    return {"steps": run.loop("oracle").steps, "val": {name: s.as_dict() for name, s in scores.items()}}


def _folder(run: Run) -> dict[str, Any]:
    return {"parameters": write_start_folder(run.out, run.seed)}


def _clip(run: Run) -> dict[str, Any]:
    vq = load_tokenizer(run.out)
    val = load_scenes(run.data / "val", limit=512)
    pairs = load_scenes(run.data / "adversarial") if (run.data / "adversarial").is_dir() else None
    clip = train_clip(load_scenes(run.data / "train"), vq, run.out / TEXT_FOLDER, run.out, run.loop("clip"))
    numbers = evaluate_clip(clip, vq, clip_tokenizer(run.out / TEXT_FOLDER), val, pairs)
    return {"steps": run.loop("clip").steps, "parameters": sum(p.numel() for p in clip.parameters()), "val": numbers}
