"""A tiny random model of each family, on disk and in memory."""

from __future__ import annotations

import pytest
import torch

from megaunigame.models.emu3 import Emu3
from megaunigame.models.emu3 import folder as emu3_folder
from megaunigame.models.janus import Janus
from megaunigame.models.janus.folder import random_state, tiny_config, train_tokenizer, write_folder
from megaunigame.models.openuni import Flow, OpenUni
from megaunigame.models.openuni import folder as openuni_folder

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


OPENUNI_SIZES = {
    "image_size": 32, "source_size": 16, "patch_size": 4, "vision_width": 32, "width": 64, "intermediate": 96, "queries": 6,
    "dit_width": 32, "latent_channels": 4, "autoencoder_widths": (8, 16, 16), "autoencoder_layers": (1, 1, 1),
    "scaling_factor": 0.7, "flow": Flow(sample_steps=3),
}  # fmt: skip


@pytest.fixture(scope="session")
def openuni_tokenizer():
    return openuni_folder.train_tokenizer(CORPUS, 300)


@pytest.fixture(scope="session")
def openuni_config(openuni_tokenizer):
    return openuni_folder.tiny_config(openuni_tokenizer, **OPENUNI_SIZES)


@pytest.fixture(scope="session")
def openuni_state(openuni_config):
    """Weights large enough that different inputs give clearly different outputs."""
    state = openuni_folder.random_state(openuni_config, seed=0)
    return {name: value * 2 if value.dim() > 1 and not name.startswith("vae.") else value for name, value in state.items()}


@pytest.fixture(scope="session")
def openuni_path(tmp_path_factory, openuni_config, openuni_state, openuni_tokenizer):
    path = tmp_path_factory.mktemp("openuni")
    openuni_folder.write_folder(path, openuni_config, openuni_state, openuni_tokenizer)
    return path


@pytest.fixture
def openuni(openuni_path):
    return OpenUni.load(openuni_path, max_length=96)


EMU3_SIZES = {
    "width": 64, "key_value_heads": 2, "intermediate": 96, "channel_multiplier": (1, 1, 1), "codes": 48,
}  # fmt: skip
EMU3_PICTURES = {"image_size": 16, "source_size": 12}


@pytest.fixture(scope="session")
def emu3_tokenizer():
    return emu3_folder.train_tokenizer(CORPUS, 300, codes=48)


@pytest.fixture(scope="session")
def emu3_config(emu3_tokenizer):
    return emu3_folder.tiny_config(emu3_tokenizer, **EMU3_SIZES)


@pytest.fixture(scope="session")
def emu3_state(emu3_config):
    """Weights large enough that different inputs give clearly different outputs."""
    state = emu3_folder.random_state(emu3_config, seed=0)
    return {name: value * 3 if value.dim() > 1 and "vqmodel" not in name else value for name, value in state.items()}


@pytest.fixture(scope="session")
def emu3_path(tmp_path_factory, emu3_config, emu3_state, emu3_tokenizer):
    """Pictures of 4 x 4 codes are drawn, pictures of 3 x 3 codes are understood."""
    path = tmp_path_factory.mktemp("emu3")
    emu3_folder.write_folder(path, emu3_config, emu3_state, emu3_tokenizer, **EMU3_PICTURES)
    return path


@pytest.fixture
def emu3(emu3_path):
    return Emu3.load(emu3_path, max_length=128)
