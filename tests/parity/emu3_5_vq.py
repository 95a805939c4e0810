"""The vision tokenizer of Emu3.5: latents, codes, pictures; and its quantizer in training, whose values follow from them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megaunigame.models.emu3_5.configuration import VisionConfig
from megaunigame.models.emu3_5.keys import KEYS
from megaunigame.models.emu3_5.vq import VisionTokenizer
from megaunigame.models.vqgan.code_tokenizer import CodeTokenizer
from tests.parity.fixture import EPSILON, EXACT, GROUPS, Fixture, Tolerance, taken


def tolerance(name: str) -> Tolerance:
    return EXACT if name.startswith("codes") else Tolerance(absolute=1e-4)


def vq_config(config: dict[str, Any]) -> VisionConfig:
    """Neutral sizes of a fixture -> ours."""
    assert config["group_norm"] == {"groups": GROUPS, "eps": EPSILON} and not config["double_z"]
    same = "codebook_size", "embed_dim", "latent_channels", "base_channels", "channel_multiplier", "num_res_blocks"
    return VisionConfig.of(taken(config, *same, "attn_resolutions", "resolution"))


@torch.no_grad()
def compute(fixture: Fixture) -> dict[str, Tensor]:
    tokenizer = VisionTokenizer(vq_config(fixture.config))
    fixture.load(KEYS, None, tokenizer)
    tokenizer.eval()
    pixels = fixture.inputs["pixels"]
    latents, codes = tokenizer.latents(pixels), tokenizer.encode(pixels)
    quantized = tokenizer.embed(codes)
    cells = latents.permute(0, 2, 3, 1)
    near = CodeTokenizer.scores(tokenizer, cells.flatten(0, 2), tokenizer.codebook()).argmax(1)
    return {
        "latents": latents,
        "codes": codes,
        "codes_if_nearest_L2_NOT_official": near.view(codes.shape),
        "quantized": quantized,
        "decoded": tokenizer.decode_codes(fixture.inputs["codes"]),
        "reconstruction": tokenizer.decode_codes(codes),
        # Straight-through: in training too the value is the chosen row.
        "train.quantized": quantized,
        "train.quant_loss": (2 + fixture.config["beta"]) * (quantized - latents).square().mean(),
    }
