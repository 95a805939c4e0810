"""The KL autoencoder of Harmon: posterior, latents, pictures that are not square."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megaunigame.models.harmon.autoencoder import Autoencoder
from megaunigame.models.harmon.model import in_grid, in_lines
from megaunigame.models.vqgan.layers import Sizes, attention_levels
from megaunigame.models.weights.loading import load_plain
from megaunigame.models.weights.renamed import RenamedWeights, StoredTensor
from megaunigame.models.weights.tensor_files import TensorFiles
from tests.parity.fixture import EPSILON, GROUPS, Fixture, Tolerance


def tolerance(name: str) -> Tolerance:
    return Tolerance(of_largest=1e-4)


def sizes(config: dict[str, Any]) -> tuple[Sizes, Sizes]:
    """Neutral sizes of a fixture -> those of encoder and decoder."""
    assert (config["group_norm_groups"], config["group_norm_eps"], config["patch_size"]) == (GROUPS, EPSILON, 1)
    assert config["decoder_attn_resolutions"] == []
    levels, blocks = len(config["ch_mult"]), config["num_res_blocks"]
    attention = attention_levels(config["resolution"], config["encoder_attn_resolutions"], levels)
    common, channels = (config["ch"], tuple(config["ch_mult"])), config["z_channels"]
    encoder = Sizes(*common, (blocks,) * levels, attention, latent=2 * channels)
    return encoder, Sizes(*common, (blocks + 1,) * levels, frozenset(), latent=channels)


def compute(fixture: Fixture) -> dict[str, Tensor]:
    autoencoder, scale, given = Autoencoder(*sizes(fixture.config)), fixture.config["vae_scale"], fixture.inputs
    files = TensorFiles([fixture.weights])
    load_plain(autoencoder, RenamedWeights(files, {key: StoredTensor(key) for key in files.index}))
    with torch.no_grad():
        mean, log_variance = autoencoder.posterior(given["pixel_values"])
        z = given["z_tokens"]
        latents = in_grid(z.flatten(1, 2), (z.shape[1], z.shape[2])) / scale
        return {
            "posterior_mean": mean,
            "posterior_logvar": log_variance,
            "tokens": in_lines(mean * scale).unflatten(1, mean.shape[2:]),
            "decoded_from_tokens": autoencoder.decode(mean),
            "decoded_from_z": autoencoder.decode(latents),
        }
