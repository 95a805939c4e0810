from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import JanusVQVAE

from megaunigame.errors import CheckpointError, ModelError
from megaunigame.tiny_world.sizes import vq_config
from megaunigame.tiny_world.tokenizer_training import (
    TokenizerSettings,
    TokenizerStage,
    evaluate_tokenizer,
    load_tokenizer,
    reconstruct,
    train_tokenizer,
)
from tests.tiny_world.toy import interrupted, loop, toy_scenes

STEPS = 8
SETTINGS = TokenizerSettings(autoencoder_steps=3)


@pytest.fixture(scope="module")
def scenes():
    return toy_scenes(40, size=32)


@pytest.fixture(scope="module")
def uninterrupted(scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, train_tokenizer(scenes, folder, loop(STEPS), SETTINGS)


@pytest.mark.parametrize("stop_before", [2, 3, 6], ids=["autoencoder", "k-means", "quantized"])
def test_an_interrupted_run_ends_with_the_same_numbers(scenes, uninterrupted, tmp_path, stop_before):
    with interrupted(TokenizerStage, at=stop_before):
        train_tokenizer(scenes, tmp_path, loop(STEPS), SETTINGS)
    resumed = train_tokenizer(scenes, tmp_path, loop(STEPS), SETTINGS)
    expected = uninterrupted[1].state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.state_dict().items())


def test_a_state_of_another_seed_is_refused(scenes, uninterrupted):
    with pytest.raises(CheckpointError, match="--seed 0"):
        train_tokenizer(scenes, uninterrupted[0], loop(STEPS, seed=1), SETTINGS)


def test_codebook_rows_have_unit_length_and_transformers_finds_the_same_codes(scenes, uninterrupted):
    tokenizer = load_tokenizer(uninterrupted[0])
    rows = tokenizer.quantize.embedding.weight
    assert torch.allclose(rows.norm(dim=1), torch.ones(len(rows)), atol=1e-5)
    theirs = JanusVQVAE(vq_config())
    theirs.load_state_dict(tokenizer.state_dict())
    pixels = scenes.batch("rgb", torch.arange(8))
    with torch.no_grad():
        assert torch.equal(theirs.encode(pixels).image_tokens.view(8, -1), tokenizer.encode(pixels))


def test_reconstruction_error_falls(scenes, tmp_path, uninterrupted):
    longer = train_tokenizer(scenes, tmp_path, loop(40, 2e-3), TokenizerSettings(autoencoder_steps=20))
    pixels = scenes.batch("rgb", torch.arange(16))
    before = F.mse_loss(reconstruct(uninterrupted[1], pixels)[0], pixels)
    assert F.mse_loss(reconstruct(longer, pixels)[0], pixels) < before
    assert evaluate_tokenizer(longer, scenes, 16)["rgb"]["codes"] > 16


def test_missing_tokenizer_says_what_to_type(tmp_path):
    with pytest.raises(ModelError, match="--stage vq"):
        load_tokenizer(tmp_path)
