"""Training of the tiny autoencoder (DC-AE) on color, depth and segmentation pictures.

A plain autoencoder, as DC-AE is: reconstruction only. Noise on the latents makes the decoder robust to small errors of a
diffusion transformer, and keeps neighboring latents alike.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from megaunigame.errors import ModelError
from megaunigame.models.diffusion.modules import autoencoder
from megaunigame.models.openuni.configuration import OpenUniConfig
from megaunigame.tiny_world.loop import LoopSettings, Stage, bf16_if_fast, train
from megaunigame.tiny_world.scenes import KINDS, Scenes
from megaunigame.tiny_world.tokenizer_training import decibels, draw_mix

if TYPE_CHECKING:
    from diffusers import AutoencoderDC

AUTOENCODER_FILE = "autoencoder.safetensors"
LATENT_NOISE = 0.1
"""Standard deviation of the noise on latents, relative to theirs."""
OBJECT_WEIGHT = 4.0
ABSOLUTE_WEIGHT = 0.1
SIZE_WEIGHT = 1e-4
"""Keeps the mean of the latents near zero; their scale is free."""
BATCH = 32


class AutoencoderStage(Stage):
    """Squared and absolute error of a fixed mix of picture kinds."""

    name = "autoencoder"
    module: AutoencoderDC

    def __init__(self, module: AutoencoderDC, scenes: Scenes):
        self.module, self.scenes = module, scenes

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        pixels, weight = draw_mix(self.scenes, OBJECT_WEIGHT, generator)
        with bf16_if_fast():
            latents = self.module.encode(pixels, return_dict=False)[0].float()
            noise = torch.randn(latents.shape, generator=generator)
            # Not detached: otherwise the latents would grow without bound, to outgrow the noise.
            noisy = latents + LATENT_NOISE * latents.std() * noise
            error = self.module.decode(noisy, return_dict=False)[0].float() - pixels
        size = SIZE_WEIGHT * latents.square().mean()
        loss = (weight * error.square()).mean() + ABSOLUTE_WEIGHT * (weight * error.abs()).mean() + size
        return loss, {"psnr": decibels(error.detach() + pixels, pixels), "std": float(latents.detach().std())}


def train_autoencoder(config: OpenUniConfig, scenes: Scenes, folder: Path, loop: LoopSettings) -> AutoencoderDC:
    """Train (or continue) the autoencoder and write `folder`/autoencoder.safetensors, in float16, with its scaling factor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(loop.seed)
        module = autoencoder(config.autoencoder)
        for part in module.modules():
            if isinstance(part, nn.Linear | nn.Conv2d):
                part.reset_parameters()
    train(AutoencoderStage(module, scenes), loop, folder)
    scale = scaling_factor(module.eval(), scenes)
    weights = {name: value.half().contiguous() for name, value in module.state_dict().items()}
    save_file(weights, folder / AUTOENCODER_FILE, {"format": "pt", "scaling_factor": json.dumps(scale)})
    return module


@torch.no_grad()
def scaling_factor(module: AutoencoderDC, scenes: Scenes, count: int = 256) -> float:
    """Factor that scales the latents of all kinds of pictures together to unit standard deviation."""
    latents = [_encoded(module, scenes.batch(kind, torch.arange(min(count, len(scenes))))) for kind in KINDS]
    return round(1 / float(torch.cat(latents).std()), 4)


def _encoded(module: AutoencoderDC, pixels: Tensor) -> Tensor:
    return torch.cat([module.encode(part, return_dict=False)[0] for part in pixels.split(BATCH)])


def _decoded(module: AutoencoderDC, latents: Tensor) -> Tensor:
    return torch.cat([module.decode(part, return_dict=False)[0] for part in latents.split(BATCH)])


def read_autoencoder(folder: Path) -> tuple[dict[str, Tensor], float]:
    """(weights, scaling factor) of a trained autoencoder. Raises ModelError when `folder` has none."""
    file = folder / AUTOENCODER_FILE
    if not file.is_file():
        raise ModelError(f"No {AUTOENCODER_FILE} in {folder}. Train it: python -m megaunigame.tiny_world.openuni --train ...")
    with safe_open(file, framework="pt") as opened:
        scale = json.loads(opened.metadata()["scaling_factor"])
        return {name: opened.get_tensor(name).float() for name in opened.keys()}, scale  # noqa: SIM118


@torch.no_grad()
def evaluate_autoencoder(module: AutoencoderDC, scale: float, scenes: Scenes, count: int = 256) -> dict[str, Any]:
    """Per kind of picture: PSNR in dB, clean and with noise of a tenth of the latents, and the standard deviation of scaled
    latents, on the first `count` scenes."""
    report = {}
    for kind in KINDS:
        pixels = scenes.batch(kind, torch.arange(min(count, len(scenes))))
        latents = _encoded(module, pixels)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)) * LATENT_NOISE / scale
        report[kind] = {
            "psnr": round(decibels(_decoded(module, latents), pixels), 2),
            "psnr_noisy_latents": round(decibels(_decoded(module, latents + noise), pixels), 2),
            "scaled_std": round(float(latents.std() * scale), 3),
        }
    return report
