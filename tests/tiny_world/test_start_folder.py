from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from megaunigame.errors import ModelError
from megaunigame.models.janus import Janus
from megaunigame.tiny_world.loop import LoopSettings
from megaunigame.tiny_world.sizes import GRID, VISUAL_TOKENS
from megaunigame.tiny_world.start_folder import TEXT_FOLDER, write_start_folder
from megaunigame.tiny_world.tokenizer_text import train_text_tokenizer
from megaunigame.tiny_world.tokenizer_training import TokenizerSettings, train_tokenizer
from megaunigame.tiny_world.tower_warmup import TowerModule, TowerStage, evaluate_tower, train_tower
from tests.tiny_world.toy import toy_scenes


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """A folder in which the text, vq and tower stages have run for a moment."""
    out = tmp_path_factory.mktemp("stages")
    train_text_tokenizer(["a red cube", "\nis there a red cube ?", " yes"]).save_pretrained(out / TEXT_FOLDER)
    short = LoopSettings(steps=2, learning_rate=1e-3)
    train_tokenizer(toy_scenes(16, size=32), out, short, TokenizerSettings(autoencoder_steps=1))
    train_tower(toy_scenes(16), out, short)
    return out


def test_the_folder_holds_the_trained_parts_and_fits_the_repository(stages):
    counts = write_start_folder(stages, seed=0)
    assert counts["total"] <= 5_800_000
    model = Janus.load(stages / "start")
    assert model.codes_per_image == model.processor.visual_tokens == VISUAL_TOKENS == GRID * GRID
    tower = load_file(stages / "tower.safetensors")
    vq = load_file(stages / "vq.safetensors")
    loaded = model.state_dict()
    assert all(torch.equal(loaded[f"model.vision_model.{name}"], value) for name, value in tower.items())
    assert torch.equal(loaded["model.generation_embeddings.weight"], vq["quantize.embedding.weight"])
    pixels = toy_scenes(2).batch("rgb", torch.arange(2))
    assert model.encode_target(pixels).shape == (2, VISUAL_TOKENS)


def test_an_unfinished_stage_is_named(tmp_path):
    with pytest.raises(ModelError, match="--stage text"):
        write_start_folder(tmp_path, seed=0)


def test_tower_warm_up_learns(tmp_path):
    scenes = toy_scenes(64)
    torch.manual_seed(0)
    module = TowerModule()
    before = TowerStage(module, scenes).loss(0, torch.Generator().manual_seed(0))[0]
    module = train_tower(scenes, tmp_path, LoopSettings(steps=15, learning_rate=2e-3))
    after = TowerStage(module, scenes).loss(0, torch.Generator().manual_seed(0))[0]
    assert after < 0.7 * before
    assert evaluate_tower(module, scenes)["depth_rmse"] < 0.3
