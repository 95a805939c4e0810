"""The autoencoder of the tiny OpenUni, and the folder it starts from."""

from __future__ import annotations

import pytest
import torch

from megaunigame.errors import ConfigError, ModelError
from megaunigame.models.openuni import OpenUni
from megaunigame.models.openuni.folder import train_tokenizer
from megaunigame.tiny_world.autoencoder_training import (
    AUTOENCODER_FILE,
    AutoencoderStage,
    evaluate_autoencoder,
    read_autoencoder,
    train_autoencoder,
)
from megaunigame.tiny_world.openuni import SHIPPED, main, tiny_openuni, write_start
from tests.tiny_world.toy import interrupted, loop, toy_scenes

LOOP = loop(5, 2e-3)


@pytest.fixture(scope="module")
def scenes():
    return toy_scenes(24, size=32)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a red cube", " yes"], 280)


@pytest.fixture(scope="module")
def parts(tmp_path_factory, scenes, tokenizer):
    """A folder with a tokenizer and an autoencoder that has trained for a moment."""
    folder = tmp_path_factory.mktemp("parts")
    tokenizer.save_pretrained(folder)
    train_autoencoder(tiny_openuni(tokenizer), scenes, folder, LOOP)
    return folder


def test_an_interrupted_run_ends_with_the_same_numbers(scenes, tokenizer, parts, tmp_path):
    with interrupted(AutoencoderStage, at=3):
        train_autoencoder(tiny_openuni(tokenizer), scenes, tmp_path, LOOP)
    train_autoencoder(tiny_openuni(tokenizer), scenes, tmp_path, LOOP)
    (resumed, scale), (expected, expected_scale) = read_autoencoder(tmp_path), read_autoencoder(parts)
    assert scale == expected_scale and all(torch.equal(value, expected[name]) for name, value in resumed.items())


def test_the_error_falls(scenes, tokenizer, parts, tmp_path):
    longer = train_autoencoder(tiny_openuni(tokenizer), scenes, tmp_path, loop(20, 2e-3))
    scale = read_autoencoder(tmp_path)[1]
    shorter = OpenUni.load(written(parts, tmp_path)).autoencoder
    better, worse = (evaluate_autoencoder(m, scale, scenes)["rgb"]["psnr"] for m in (longer, shorter))
    assert better > worse + 1


def written(parts, tmp_path):
    write_start(parts, tmp_path / "start", seed=0)
    return tmp_path / "start"


def test_the_start_folder_holds_the_trained_autoencoder(scenes, parts, tmp_path):
    counts = write_start(parts, tmp_path / "start", seed=0)
    assert 3e6 < counts["total"] < 5e6
    model = OpenUni.load(tmp_path / "start")
    weights, scale = read_autoencoder(parts)
    assert all(torch.equal(p, weights[n]) for n, p in model.autoencoder.named_parameters())
    assert model.config.autoencoder["scaling_factor"] == scale
    latents = model.encode_target(torch.cat([scenes.batch(kind, torch.arange(24)) for kind in scenes.pictures]))
    assert latents.std().item() == pytest.approx(1, abs=0.02)


def test_the_shipped_parts_start_a_model(tmp_path):
    assert (SHIPPED / AUTOENCODER_FILE).stat().st_size < 1_500_000
    model = OpenUni.load(written(SHIPPED, tmp_path))
    assert model.processor.visual_tokens == model.config.queries == 64 and model.config.latent_shape == (8, 8, 8)
    word = model.processor.tokenizer.encode(" leftmost", add_special_tokens=False)
    assert len(word) == 1, "the shipped tokenizer knows the words of the scenes"


def test_missing_parts_say_what_to_type(tmp_path):
    with pytest.raises(ModelError, match="No autoencoder.safetensors .* --train"):
        write_start(tmp_path, tmp_path / "start", seed=0)
    with pytest.raises(ConfigError, match="--train needs --data .* and --work"):
        main(["--out", str(tmp_path), "--train"])
