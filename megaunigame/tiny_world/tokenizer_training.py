"""Training of the image tokenizer on color, depth and segmentation pictures.

A commitment loss on a random codebook collapses all latents onto one direction. So the network first trains as a plain
autoencoder on unit-norm latents; then k-means on these latents makes the codebook, and quantization starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from megaunigame.errors import ModelError
from megaunigame.models.janus.vq import ImageTokenizer
from megaunigame.pixels import psnr
from megaunigame.tiny_world.codebook import RunningCodebook, perplexity
from megaunigame.tiny_world.loop import LoopSettings, Stage, bf16_if_fast, generator_at, train
from megaunigame.tiny_world.scenes import KINDS, Scenes
from megaunigame.tiny_world.sizes import CODES, vq_config

MIX = {"rgb": 9, "depth": 3, "regions": 3, "contours": 1}
"""Pictures of each kind in every batch."""
VQ_FILE = "vq.safetensors"
RESTART_EVERY = 25
RESTART_UNTIL = 0.7
"""Fraction of the steps during which dead codes are restarted; afterwards the codebook settles."""
KMEANS_BATCHES = 12
MARGIN = 2
"""Pixels around an object that count as part of it in the loss."""


@dataclass(frozen=True)
class TokenizerSettings:
    """Settings of the loss."""

    autoencoder_steps: int = 200
    absolute_weight: float = 0.1
    commitment_weight: float = 0.8
    object_weight: float = 4.0
    """Weight of pixels on and around objects relative to the rest, in color and region pictures: a few pixels at the
    edges decide about a shape."""


class TokenizerModule(nn.Module):
    """The image tokenizer and, during training, its running codebook."""

    def __init__(self, vq: ImageTokenizer):
        super().__init__()
        self.vq = vq
        # The rows are updated by running means, so they must get no gradient and no weight decay.
        vq.quantize.embedding.weight.requires_grad_(False)
        self.codebook = RunningCodebook(*vq.quantize.embedding.weight.shape)


def flat(latents: Tensor) -> Tensor:
    """(B, D, h, w) -> (B h w, D)."""
    return latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])


class TokenizerStage(Stage):
    """Reconstruction of a fixed mix of picture kinds."""

    name = "vq"
    module: TokenizerModule

    def __init__(self, module: TokenizerModule, scenes: Scenes, loop: LoopSettings, settings: TokenizerSettings):
        self.module, self.scenes, self.loop, self.settings = module, scenes, loop, settings

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        module, settings = self.module, self.settings
        if step == settings.autoencoder_steps:
            self._lay_codebook(step)
        pixels, weight = draw_mix(self.scenes, settings.object_weight, generator)
        quantize = step >= settings.autoencoder_steps
        with bf16_if_fast():
            passed = latents = module.vq.latents(pixels)
        if quantize:  # outside autocast: codes chosen in bfloat16 would not be the nearest
            rows = flat(latents.detach())
            codes = module.codebook.assign(rows)
            b, d, h, w = latents.shape
            target = module.codebook.rows[codes].view(b, h, w, d).permute(0, 3, 1, 2).contiguous()
            module.codebook.update(rows, codes)
            self._latents = rows
            passed = latents + (target - latents).detach()
        with bf16_if_fast():
            output = module.vq.decode_embeddings(passed).float()
        error = output - pixels
        square = (weight * error.square()).mean()
        loss = square + settings.absolute_weight * (weight * error.abs()).mean()
        if quantize:
            loss = loss + settings.commitment_weight * F.mse_loss(latents, target)
        numbers = {"psnr_rgb": decibels(output[: MIX["rgb"]].detach(), pixels[: MIX["rgb"]])}
        if quantize:
            numbers |= {"codes": float(len(codes.unique())), "perplexity": module.codebook.perplexity()}
        return loss, numbers

    def after_update(self, step: int, generator: torch.Generator) -> None:
        settled = step >= RESTART_UNTIL * self.loop.steps
        if step > self.settings.autoencoder_steps and step % RESTART_EVERY == 0 and not settled:
            self.module.codebook.restart_dead(self._latents, generator)

    @torch.no_grad()
    def _lay_codebook(self, step: int) -> None:
        batches = []
        for number in range(KMEANS_BATCHES):
            generator = generator_at(self.loop.seed + 1, step + number)
            pixels, _ = draw_mix(self.scenes, self.settings.object_weight, generator)
            with bf16_if_fast():
                batches.append(flat(self.module.vq.latents(pixels)))
        self.module.codebook.fit(torch.cat(batches), KMEANS_BATCHES, generator_at(self.loop.seed + 2, step))


def draw_mix(scenes: Scenes, object_weight: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The fixed mix of pictures (B, 3, H, W) in [-1, 1], half of them mirrored, and pixel weights (B, 1, H, W) of mean 1."""
    pictures, weights = [], []
    for kind, count in MIX.items():
        index = torch.randint(len(scenes), (count,), generator=generator)
        weight = torch.ones(count, *scenes.segmentation.shape[1:])
        if kind in ("rgb", "regions"):
            near = F.max_pool2d((scenes.segmentation[index] > 0).float(), 2 * MARGIN + 1, 1, MARGIN) > 0
            weight[near] = object_weight
        pictures.append(scenes.batch(kind, index))
        weights.append(weight / weight.mean(dim=(1, 2), keepdim=True))
    pixels, weight = torch.cat(pictures), torch.cat(weights).unsqueeze(1)
    mirrored = torch.rand(len(pixels), generator=generator) < 0.5
    pixels[mirrored], weight[mirrored] = pixels[mirrored].flip(-1), weight[mirrored].flip(-1)
    return pixels, weight


def decibels(output: Tensor, target: Tensor) -> float:
    """PSNR of pictures (B, 3, H, W) in [-1, 1], clamped to it, from the mean squared error of all of them."""
    return float(psnr(output.clamp(-1, 1).unsqueeze(0), target.unsqueeze(0)))


def train_tokenizer(scenes: Scenes, folder: Path, loop: LoopSettings, settings: TokenizerSettings) -> ImageTokenizer:
    """Train (or continue) the image tokenizer and write `folder/vq.safetensors` (names of transformers' JanusVQVAE)."""
    with torch.random.fork_rng():
        torch.manual_seed(loop.seed)
        vq = ImageTokenizer(vq_config())
        for part in vq.modules():
            if isinstance(part, nn.Conv2d):  # torch's initialization suits their fan-in better than N(0, .02)
                part.reset_parameters()
    module = TokenizerModule(vq)
    train(TokenizerStage(module, scenes, loop, settings), loop, folder)
    module.vq.quantize.embedding.weight.data.copy_(module.codebook.rows)
    save_file({name: value.contiguous() for name, value in module.vq.state_dict().items()}, folder / VQ_FILE)
    return module.vq.eval()


def load_tokenizer(folder: Path) -> ImageTokenizer:
    """The trained tokenizer of `folder`, frozen. Raises ModelError when its training has not finished."""
    if not (folder / VQ_FILE).is_file():
        raise ModelError(f"No {VQ_FILE} in {folder}. Train it with: launch/tiny_world.py --stage vq --out {folder}")
    vq = ImageTokenizer(vq_config())
    vq.load_state_dict(load_file(folder / VQ_FILE))
    return vq.eval().requires_grad_(False)


@torch.no_grad()
def reconstruct(vq: ImageTokenizer, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, H, W) in [-1, 1] after encoding and decoding, clamped, and their codes (B, N)."""
    codes = []
    for part in pixels.split(32):
        with bf16_if_fast():
            latents = vq.latents(part)
        codes.append(vq.nearest(latents))
    return decode(vq, torch.cat(codes)), torch.cat(codes)


@torch.no_grad()
def decode(vq: ImageTokenizer, codes: Tensor) -> Tensor:
    """Codes (B, N) -> pictures (B, 3, H, W), clamped to [-1, 1]."""
    with bf16_if_fast():
        return torch.cat([vq.decode_codes(part).float().clamp(-1, 1) for part in codes.split(32)])


def evaluate_tokenizer(vq: ImageTokenizer, scenes: Scenes, count: int = 256) -> dict[str, dict[str, float]]:
    """Per kind of picture: PSNR in dB, codes used and their perplexity, on the first `count` scenes."""
    report: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        pixels = scenes.batch(kind, torch.arange(min(count, len(scenes))))
        pictures, codes = reconstruct(vq, pixels)
        counts = torch.bincount(codes.flatten(), minlength=CODES).double()
        report[kind] = {
            "psnr": decibels(pictures, pixels),
            "codes": float((counts > 0).sum()),
            "perplexity": perplexity(counts),
        }
    return report
