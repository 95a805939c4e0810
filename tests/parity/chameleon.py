"""Chameleon: its image tokenizer, which token a code is, and how the official code reads and writes pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import ChameleonVQVAEConfig

from megaunigame.models.chameleon.code_names import codes_by_place, ids_of_codes
from megaunigame.models.chameleon.conversation import BEGIN_OF_IMAGE, END_OF_IMAGE, SEPARATOR
from megaunigame.models.chameleon.keys import KEYS
from megaunigame.models.chameleon.text_tokenizer import BOS, EOS, PAD
from megaunigame.models.chameleon.vq import ImageTokenizer
from tests.parity.fixture import EPSILON, EXACT, GROUPS, Fixture, Tolerance, taken

COMMITMENT = 0.25
"""Weight of the commitment term in the official loss."""
MAPS = {"map": "toy_vocabulary", "map_shuffled": "toy_vocabulary_shuffled"}
"""Group of outputs -> its vocabulary in config.json."""


def tolerance(name: str) -> Tolerance:
    if name == "codes" or name.startswith("map"):
        return EXACT
    return Tolerance(absolute=1.0 if name in ("postproc.uint8", "preproc.whitened") else 1e-4)


def vq_config(config: dict[str, Any]) -> ChameleonVQVAEConfig:
    """Neutral sizes of a fixture -> transformers' configuration."""
    sizes = config["vq"]
    assert sizes["group_norm"] == {"groups": GROUPS, "eps": EPSILON} and sizes["in_channels"] == sizes["out_channels"]
    same = "base_channels", "in_channels", "channel_multiplier", "num_res_blocks", "attn_resolutions", "resolution"
    renamed = {"num_embeddings": "codebook_size", "double_latent": "double_z"}
    return ChameleonVQVAEConfig(**taken(sizes, *same, "latent_channels", "embed_dim", **renamed))


@torch.no_grad()
def compute(fixture: Fixture) -> dict[str, Tensor]:
    given, vocabulary = fixture.inputs, fixture.config[MAPS["map_shuffled"]]
    config = vq_config(fixture.config)
    # Codes are numbered by the places of their tokens; the shuffled vocabulary shows that nothing depends on the order.
    by_place = torch.tensor(codes_by_place(ids_of_codes(vocabulary, config.num_embeddings, "the fixture")))
    place_of = by_place.argsort()
    tokenizer = ImageTokenizer(config, by_place.tolist())
    fixture.load(KEYS, None, tokenizer)
    tokenizer.eval()
    latents, places = tokenizer.latents(given["pixels"]), tokenizer.encode(given["pixels"])
    rows = tokenizer.embed(places)
    decoded = tokenizer.decode_codes(place_of[given["codes"]])
    found = {
        "latents": latents,
        "codes": by_place[places],
        "quantized": rows,
        "vq_loss": (rows - latents).square().mean() * (1 + COMMITMENT),
        "decoded": decoded,
        "reconstruction": tokenizer.decode_codes(places),
        "postproc.uint8": ((decoded.clamp(-1, 1) + 1) / 2 * 255).permute(0, 2, 3, 1).to(torch.uint8),
    }
    return found | preprocessing(fixture) | vocabularies(fixture, config.num_embeddings)


def preprocessing(fixture: Fixture) -> dict[str, Tensor]:
    """Pictures as the official code reads them. Ours follow `models/text/pictures.py`, which is not the same; see the page."""
    rgba = fixture.inputs["image_rgba"].numpy()
    alpha = rgba[..., 3:].astype(np.float64) / 255
    white = (rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    found = {"preproc.whitened": torch.from_numpy(white)}
    for name in fixture.outputs:
        if name.startswith("preproc.pixels_"):
            side = int(name.rpartition("_")[2])
            picture = Image.fromarray(white)
            shorter = min(picture.size)
            picture = picture.resize([round(side / shorter * edge) for edge in picture.size], Image.Resampling.LANCZOS)
            left, top = ((edge - side) // 2 for edge in picture.size)
            pixels = torch.from_numpy(np.array(picture.crop((left, top, left + side, top + side))))
            found[name] = (pixels.permute(2, 0, 1).float() / 255 * 2 - 1).unsqueeze(0)
    return found


def vocabularies(fixture: Fixture, codebook: int) -> dict[str, Tensor]:
    """Which token a code is, in the two vocabularies of the fixture."""
    found: dict[str, Tensor] = {}
    codes = fixture.inputs["map.codes"]
    for group, key in MAPS.items():
        vocabulary: Mapping[str, int] = fixture.config[key]
        ids = torch.tensor(ids_of_codes(vocabulary, codebook, "the fixture"))
        by_place = torch.tensor(codes_by_place(ids.tolist()))
        named = {name for name in vocabulary if name.startswith("<") and name != "<"}
        special = torch.tensor(sorted(vocabulary[name] for name in named))
        image = set(ids.tolist())
        text = sorted(id for name, id in vocabulary.items() if id not in image and name not in named)
        six = BOS, EOS, BEGIN_OF_IMAGE, END_OF_IMAGE, PAD, SEPARATOR
        found |= {
            f"{group}.id_of_code": ids,
            f"{group}.code_of_id": torch.stack([ids.sort().values, by_place], dim=1),
            f"{group}.codes_to_ids": ids[codes],
            # Upstream looks ids up among the sorted ones and takes the codes for sorted too: right only where they are.
            f"{group}.ids_to_codes_search": torch.searchsorted(ids.sort().values, ids[codes]),
            f"{group}.special_ids": torch.tensor([vocabulary[name] for name in six]),
            f"{group}.special_tokens": special,
            f"{group}.text_tokens": torch.tensor(text),
        }
    return found
