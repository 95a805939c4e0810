"""A tiny random Janus, on disk and in memory."""

from __future__ import annotations

import pytest
import torch

from megaunigame.models.janus import Janus
from megaunigame.models.janus.folder import random_state, tiny_config, train_tokenizer, write_folder

CORPUS = ["what color is the cube left of the red ball ?", "a small green cone behind two blue balls"] * 5
SIZES = {"image_size": 16, "patch_size": 4, "vision_width": 32, "width": 64, "layers": 2, "intermediate": 96}
TOKENIZER_SIZES = {"channel_multiplier": (1, 1, 1), "latent_channels": 16, "codes": 48}


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(CORPUS, 300)


@pytest.fixture(scope="session")
def config(tokenizer):
    return tiny_config(tokenizer, **SIZES, **TOKENIZER_SIZES)


@pytest.fixture(scope="session")
def state(config):
    """Weights large enough that different inputs give clearly different outputs."""
    return {name: value * 3 if value.dim() > 1 else value for name, value in random_state(config, seed=0).items()}


@pytest.fixture(scope="session")
def folder(tmp_path_factory, config, state, tokenizer):
    path = tmp_path_factory.mktemp("janus")
    write_folder(path, config, state, tokenizer)
    return path


@pytest.fixture
def model(folder):
    return Janus.load(folder, max_length=96)


@pytest.fixture
def picture():
    """`picture(seed)`: a random uint8 image of the model's size."""
    return lambda seed: torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
