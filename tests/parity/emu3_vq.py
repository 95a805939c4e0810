"""The vision tokenizer of Emu3: codes and pictures of images, and of videos through the same layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.emu3.configuration_emu3 import Emu3VQVAEConfig

from megaunigame.models.emu3.keys import KEYS
from megaunigame.models.emu3.vq import VisionTokenizer
from tests.parity.fixture import EPSILON, EXACT, GROUPS, Fixture, Tolerance, taken


def tolerance(name: str) -> Tolerance:
    return EXACT if "codes" in name else Tolerance(absolute=1e-4)


def vq_config(config: dict[str, Any]) -> Emu3VQVAEConfig:
    """Neutral sizes of a fixture -> transformers' configuration."""
    assert config["group_norm"] == {"groups": GROUPS, "eps": EPSILON}
    same = "codebook_size", "embed_dim", "latent_channels", "base_channels", "channel_multiplier", "num_res_blocks"
    renamed = {"double_latent": "double_z", "attn_resolutions": "attn_levels", "temporal_downsample_factor": "temporal_factor"}
    width = config["base_channels"] * config["channel_multiplier"][-1]
    return Emu3VQVAEConfig(**taken(config, *same, **renamed), hidden_size=width)


@torch.no_grad()
def compute(fixture: Fixture) -> dict[str, Tensor]:
    tokenizer = VisionTokenizer(vq_config(fixture.config))
    fixture.load(KEYS, None, tokenizer)
    tokenizer.eval()
    given = fixture.inputs
    codes = tokenizer.encode(given["pixels"])
    return {
        "latents": tokenizer.latents(given["pixels"]).unsqueeze(1),
        "codes": codes,
        "decoded": tokenizer.decode_codes(given["codes"]),
        "reconstruction": tokenizer.decode_codes(codes),
        "decoded_all_frames": decoded_video(tokenizer, given["codes"].unsqueeze(1)),
        "decoded_video": decoded_video(tokenizer, given["video_codes"]),
        "video_codes_out": video_codes(tokenizer, given["video"]),
    }


def video_codes(tokenizer: VisionTokenizer, video: Tensor) -> Tensor:
    """(B, T, 3, H, W) -> (B, T / temporal factor, h, w)."""
    latents = tokenizer.quant_conv(tokenizer.encoder(video).transpose(1, 2))
    return torch.stack([tokenizer.nearest(frame).squeeze(-1) for frame in latents.unbind(2)], dim=1)


def decoded_video(tokenizer: VisionTokenizer, codes: Tensor) -> Tensor:
    """(B, T, h, w) -> (B, T * temporal factor, 3, H, W)."""
    quant = torch.stack([tokenizer.embed(frame) for frame in codes.unbind(1)], dim=2)
    frames = tokenizer.decoder(tokenizer.post_quant_conv(quant).transpose(1, 2), quant.transpose(1, 2))
    return frames.unflatten(0, (len(codes), -1))
