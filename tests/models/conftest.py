"""A tiny random model of each family, on disk and in memory."""

from __future__ import annotations

import pytest
import torch

from megaunigame.models.emu3 import Emu3
from megaunigame.models.emu3 import folder as emu3_folder
from megaunigame.models.janus import Janus
from megaunigame.models.janus.folder import random_state, train_tokenizer, write_folder
from megaunigame.models.openuni import OpenUni
from megaunigame.models.openuni import folder as openuni_folder
from tests.tiny import tiny_config

CORPUS = ["what color is the cube left of the red ball ?", "a small green cone behind two blue balls"] * 5


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(CORPUS, 300)


@pytest.fixture(scope="session")
def config(tokenizer):
    return tiny_config("janus", tokenizer)


@pytest.fixture(scope="session")
def state(config):
    """Weights large enough that different inputs give clearly different outputs."""
    return {name: value * 3 if value.dim() > 1 else value for name, value in random_state(config, seed=0).items()}


@pytest.fixture(scope="session")
def folder(tmp_path_factory, config, state, tokenizer):
    path = tmp_path_factory.mktemp("janus")
    write_folder(path, config, state, tokenizer)
    return path


@pytest.fixture(scope="session")
def janus_path(folder):
    return folder


@pytest.fixture(scope="session")
def janus_state(state):
    return state


@pytest.fixture
def model(folder):
    return Janus.load(folder, max_length=96)


@pytest.fixture
def picture():
    """`picture(seed)`: a random uint8 image of the model's size."""
    return lambda seed: torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def openuni_tokenizer():
    return openuni_folder.train_tokenizer(CORPUS, 300)


@pytest.fixture(scope="session")
def openuni_config(openuni_tokenizer):
    return tiny_config("openuni", openuni_tokenizer)


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


EMU3_PICTURES = {"image_size": 16, "source_size": 12}


@pytest.fixture(scope="session")
def emu3_tokenizer():
    return emu3_folder.train_tokenizer(CORPUS, 300, codes=48)


@pytest.fixture(scope="session")
def emu3_config(emu3_tokenizer):
    return tiny_config("emu3", emu3_tokenizer)


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
