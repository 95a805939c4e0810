"""Training of the oracle (judges/scenes.py), on real pictures and on pictures of the image tokenizer.

Half of every batch went through the tokenizer, whose decoder makes the generated pictures: an oracle trained on sharp
pictures only would count their blur as mistakes.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from megaunigame.judges.scenes import CELL, Oracle, Scores, caption_relations, score, true_objects
from megaunigame.models.janus.vq import ImageTokenizer
from megaunigame.tiny_world.labels import IGNORED, accuracy, cell_labels
from megaunigame.tiny_world.loop import LoopSettings, Stage, bf16_if_fast, train
from megaunigame.tiny_world.scenes import Scenes
from megaunigame.tiny_world.tokenizer_training import reconstruct

BATCH = 64
THROUGH = 6000
"""Number of scenes, the first ones, that are also used after reconstruction by the tokenizer."""
ORACLE_FILE = "oracle.safetensors"


class OracleStage(Stage):
    """Cross-entropy of the color and, on objects, of the shape of every cell."""

    name = "oracle"
    module: Oracle

    def __init__(self, module: Oracle, scenes: Scenes, reconstructed: Tensor):
        self.module, self.scenes, self.reconstructed = module, scenes, reconstructed
        self.labels = cell_labels(scenes, CELL)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        sharp = torch.randint(len(self.scenes), (BATCH // 2,), generator=generator)
        through = torch.randint(len(self.reconstructed), (BATCH // 2,), generator=generator)
        pixels = torch.cat([self.scenes.batch("rgb", sharp), self.reconstructed[through].float()])
        index = torch.cat([sharp, through])
        true_color, true_shape = self.labels.color[index], self.labels.shape[index]
        mirrored = torch.rand(BATCH, generator=generator) < 0.5
        for values in (pixels, true_color, true_shape):
            values[mirrored] = values[mirrored].flip(-1)
        with bf16_if_fast():
            color, shape = (logits.float() for logits in self.module(pixels))
        loss = F.cross_entropy(color, true_color) + F.cross_entropy(shape, true_shape, ignore_index=IGNORED)
        return loss, accuracy(color.argmax(1), shape.argmax(1), true_color, true_shape)


def train_oracle(scenes: Scenes, tokenizer: ImageTokenizer, folder: Path, loop: LoopSettings) -> Oracle:
    """Train (or continue) the oracle and write `folder/oracle.safetensors` (float16)."""
    with torch.random.fork_rng():
        torch.manual_seed(loop.seed)
        oracle = Oracle()
    reconstructed, _ = reconstruct(tokenizer, scenes.batch("rgb", torch.arange(min(THROUGH, len(scenes)))))
    train(OracleStage(oracle, scenes, reconstructed.half()), loop, folder)
    oracle.save(folder / ORACLE_FILE)
    return oracle.eval()


def evaluate_oracle(oracle: Oracle, tokenizer: ImageTokenizer, scenes: Scenes) -> dict[str, Scores]:
    """Scores on real pictures and on their reconstructions: the ceilings of every generation score."""
    pixels = scenes.batch("rgb", torch.arange(len(scenes)))
    truth = [true_objects(meta) for meta in scenes.metas]
    relations = [caption_relations(meta["caption"]) for meta in scenes.metas]
    pictures = {"real": pixels, "through the tokenizer": reconstruct(tokenizer, pixels)[0]}
    return {name: score(oracle.objects(shown), truth, relations) for name, shown in pictures.items()}
