"""The vision tokenizer of Show-o: latents, codes and pictures, and its quantizer alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megaunigame.models.show_o.keys import KEYS
from megaunigame.models.show_o.vq import Magvit
from megaunigame.models.vqgan.layers import Sizes
from tests.parity.fixture import EPSILON, EXACT, GROUPS, Fixture, Tolerance

COMMITMENT, LOSS_WEIGHT = 1.25, 0.1
"""Of the official training losses of the quantizer, which nothing here trains."""


def tolerance(name: str) -> Tolerance:
    return EXACT if name in ("codes", "code_bit_table", "lfq.indices") else Tolerance(absolute=1e-4)


def sizes(part: dict[str, Any], bits: int) -> Sizes:
    return Sizes(
        part["base_channels"], tuple(part["channel_multiplier"]), tuple(part["num_res_blocks"]), frozenset(), latent=bits
    )


@torch.no_grad()
def compute(fixture: Fixture) -> dict[str, Tensor]:
    config, given = fixture.config, fixture.inputs
    assert config["group_norm"] == {"groups": GROUPS, "eps": EPSILON}
    tokenizer = Magvit(*(sizes(config[part], config["code_bits"]) for part in ("encoder", "decoder")))
    built = tokenizer.codebook().clone()
    fixture.load(KEYS, None, tokenizer)
    tokenizer.eval()
    assert torch.equal(built, tokenizer.codebook())
    latents, codes = tokenizer.latents(given["pixels"]), tokenizer.encode(given["pixels"])
    square = given["codes_square"].unflatten(1, (-1, int(given["codes_square"].shape[1] ** 0.5)))
    indices = tokenizer.nearest(given["latents"]).squeeze(-1)
    alone = tokenizer.embed(indices)
    # Per bit, the logits are minus the squared distances to +1 and -1.
    ends = torch.stack([-(given["latents"] - 1).square(), -(given["latents"] + 1).square()], -1).softmax(-1)
    per_bit, of_mean = entropy(ends).mean(), entropy(ends.mean((0, 2, 3))).mean()
    return {
        "latents": latents,
        "quantized": tokenizer.embed(codes),
        "codes": codes.flatten(1),
        "code_bit_table": tokenizer.codebook(),
        "decoded": tokenizer.decode_codes(given["codes"].unflatten(1, tuple(given["codes_hw"].tolist()))),
        "decoded_square": tokenizer.decode_codes(square),
        "reconstruction": tokenizer.decode_codes(codes),
        "lfq.z": alone,
        "lfq.indices": indices.unsqueeze(1),
        "lfq.commit_loss": LOSS_WEIGHT * COMMITMENT * (alone - given["latents"]).square().mean(),
        "lfq.entropy_loss": LOSS_WEIGHT * (per_bit - of_mean),
    }


def entropy(probabilities: Tensor) -> Tensor:
    """(..., K) -> (...)."""
    return -(probabilities * probabilities.clamp_min(1e-20).log()).sum(-1)
