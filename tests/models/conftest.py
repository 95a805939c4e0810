"""A tiny random model on disk and in memory: of the FAMILY that a module names, else of every family there is."""

from __future__ import annotations

import functools

import pytest
import torch

from tests.models.shared import FAMILIES, write_clear


def pytest_generate_tests(metafunc):
    chosen = any("tiny" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if "tiny" in metafunc.fixturenames and not chosen:
        family = getattr(metafunc.module, "FAMILY", None)
        metafunc.parametrize("tiny", [family] if family else FAMILIES, indirect=True)


@pytest.fixture(scope="session")
def tiny_of(tmp_path_factory):
    """`tiny_of(family)`: its tiny model, written once."""
    return functools.cache(lambda name: write_clear(name, tmp_path_factory.mktemp(name)))


@pytest.fixture
def tiny(request, tiny_of):
    return tiny_of(request.param)


@pytest.fixture
def model(tiny):
    return tiny.load()


@pytest.fixture
def picture():
    """`picture(seed)`: a random uint8 image of the model's size."""
    return lambda seed: torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
