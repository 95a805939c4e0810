"""The image tokenizer of Janus alone: codes, reconstruction, and the gradients of both training losses."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.janus.configuration_janus import JanusVQVAEConfig

from megaunigame.models.janus.keys import IMAGE_TOKENIZER, KEYS, translate
from megaunigame.models.janus.vq import ImageTokenizer
from tests.parity.fixture import EPSILON, EXACT, FLOATS, GRADIENTS, GROUPS, Fixture, Tolerance, taken


def vq_settings(vq: dict[str, Any]) -> dict[str, Any]:
    """Neutral sizes of a fixture -> arguments of transformers' configuration."""
    assert (vq["group_norm_groups"], vq["group_norm_eps"], vq["l2_normalised_codebook"]) == (GROUPS, EPSILON, True)
    renamed = {"channel_multiplier": "channel_mult", "num_embeddings": "codebook_size", "embed_dim": "codebook_dim"}
    return taken(vq, "base_channels", "num_res_blocks", "latent_channels", **renamed)


def tolerance(name: str) -> Tolerance:
    if name == "codes":
        return EXACT
    return GRADIENTS if name.startswith(("st_grad.", "train_grad.")) else FLOATS


def compute(fixture: Fixture) -> dict[str, Tensor]:
    vq = fixture.config["vq"]
    tokenizer = ImageTokenizer(JanusVQVAEConfig(**vq_settings(vq)), commit_beta=vq["commit_beta"])
    fixture.load(KEYS, None, tokenizer)
    tokenizer.eval()
    pixels = fixture.inputs["pixel_values"]
    codes = tokenizer.encode(pixels)
    ours = {
        "encoder_out": tokenizer.encoder(pixels),
        "prequant": tokenizer.prequant(pixels),
        "codes": codes,
        "quant": tokenizer.embed(codes),
        "decoded_image": tokenizer.decode_codes(fixture.inputs["decode_codes"]),
    }
    output = tokenizer(pixels)
    ours["reconstruction"] = output.reconstruction
    ours |= gradients(tokenizer, (output.reconstruction * fixture.inputs["R_image"]).sum(), "st_grad.", fixture)

    output = tokenizer.train()(pixels)
    ours |= {"train_codebook_loss": output.codebook_loss, "train_commit_loss": output.commit_loss}
    ours |= gradients(tokenizer, output.codebook_loss + output.commit_loss, "train_grad.", fixture)
    return ours


def gradients(tokenizer: ImageTokenizer, loss: Tensor, prefix: str, fixture: Fixture) -> dict[str, Tensor]:
    """Gradients the fixture asks for under `prefix`, by official key."""
    tokenizer.zero_grad()
    loss.backward()
    parameters = dict(tokenizer.named_parameters())
    keys = fixture.keys_of(prefix)
    found = {name: parameters[translate(key).removeprefix(IMAGE_TOKENIZER)].grad for name, key in keys.items()}
    return {name: gradient for name, gradient in found.items() if gradient is not None}
