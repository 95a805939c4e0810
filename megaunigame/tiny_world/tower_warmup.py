"""Dense supervision of the vision tower before joint training: labels for every patch.

From answers alone the model stays at the majority answer for a long time; a few minutes of per-patch color, shape and depth
avoid that. The heads used here are discarded.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.models.janus.modeling_janus import JanusVisionModel

from megaunigame.judges.scenes import COLORS, SHAPES
from megaunigame.tiny_world.labels import IGNORED, accuracy, cell_labels
from megaunigame.tiny_world.loop import LoopSettings, Stage, bf16_if_fast, train
from megaunigame.tiny_world.scenes import Scenes
from megaunigame.tiny_world.sizes import PATCH_SIZE, vision_config

BATCH = 64
TOWER_FILE = "tower.safetensors"
DEPTH_WEIGHT = 10.0
"""Depth is a squared error of a number in 0..1, about ten times smaller than the two cross-entropies."""


class TowerModule(nn.Module):
    """transformers' Janus vision tower and a linear head: pictures (B, 3, H, W) in [-1, 1] -> (B, N, outputs)."""

    def __init__(self) -> None:
        super().__init__()
        config = vision_config()
        self.tower = JanusVisionModel(config)
        # On CPU in bfloat16 a training step with sdpa takes twice the time.
        self.tower.set_attn_implementation("eager")
        self.head = nn.Linear(config.hidden_size, 1 + len(COLORS) + len(SHAPES) + 1)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of color (B, N, 1 + colors) and shape (B, N, shapes), and depth (B, N)."""
        hidden = self.tower(pictures).last_hidden_state
        color, shape, depth = self.head(hidden).float().split([1 + len(COLORS), len(SHAPES), 1], dim=-1)
        return color, shape, depth.squeeze(-1)


class TowerStage(Stage):
    """Cross-entropy of color and shape, squared error of relative inverse depth, per patch."""

    name = "tower"
    module: TowerModule

    def __init__(self, module: TowerModule, scenes: Scenes):
        self.module, self.scenes = module, scenes
        self.labels = cell_labels(scenes, PATCH_SIZE)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = torch.randint(len(self.scenes), (BATCH,), generator=generator)
        pixels = self.scenes.batch("rgb", index)
        labels = [self.labels.color[index], self.labels.shape[index], self.labels.depth[index]]
        mirrored = torch.rand(BATCH, generator=generator) < 0.5
        for values in (pixels, *labels):
            values[mirrored] = values[mirrored].flip(-1)
        true_color, true_shape, true_depth = (values.flatten(1) for values in labels)
        with bf16_if_fast():
            color, shape, depth = self.module(pixels)
        error = F.mse_loss(depth, true_depth)
        loss = (
            F.cross_entropy(color.transpose(1, 2), true_color)
            + F.cross_entropy(shape.transpose(1, 2), true_shape, ignore_index=IGNORED)
            + DEPTH_WEIGHT * error
        )
        shares = accuracy(color.argmax(-1), shape.argmax(-1), true_color, true_shape)
        return loss, {**shares, "depth_rmse": float(error.detach().sqrt())}


def train_tower(scenes: Scenes, folder: Path, loop: LoopSettings) -> TowerModule:
    """Train (or continue) the tower and write `folder/tower.safetensors` (names of transformers' JanusVisionModel)."""
    with torch.random.fork_rng():
        torch.manual_seed(loop.seed)
        module = TowerModule()
    train(TowerStage(module, scenes), loop, folder)
    save_file({name: value.contiguous() for name, value in module.tower.state_dict().items()}, folder / TOWER_FILE)
    return module.eval()


@torch.no_grad()
def evaluate_tower(module: TowerModule, scenes: Scenes) -> dict[str, float]:
    """Accuracy of color and shape on the patches of objects, and root mean squared error of depth, on all scenes."""
    labels = cell_labels(scenes, PATCH_SIZE)
    pixels = scenes.batch("rgb", torch.arange(len(scenes)))
    color, shape, depth = (torch.cat(parts) for parts in zip(*map(module, pixels.split(128)), strict=True))
    true_color, true_shape, true_depth = (v.flatten(1) for v in (labels.color, labels.shape, labels.depth))
    shares = accuracy(color.argmax(-1), shape.argmax(-1), true_color, true_shape)
    return {**shares, "depth_rmse": float((depth - true_depth).square().mean().sqrt())}
