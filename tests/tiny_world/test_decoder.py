from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file

from megaunigame.errors import ModelError
from megaunigame.tiny_world.decoder import (
    SHIPPED,
    WEIGHTS_FILE,
    DecoderStage,
    edge_error,
    read_image_tokenizer,
    write_model,
)
from megaunigame.tiny_world.loop import train
from tests.tiny_world.toy import interrupted, loop, toy_scenes

STEPS = 5


@pytest.fixture(scope="module")
def scenes():
    return toy_scenes(40, size=32)


@pytest.fixture(scope="module")
def trained(scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoder")
    vq = read_image_tokenizer(SHIPPED).train()
    train(DecoderStage(vq, scenes), loop(STEPS), folder)
    write_model(SHIPPED, vq, folder / "janus")
    return folder / "janus"


def test_pictures_keep_their_codes_and_only_the_decoder_changes(scenes, trained):
    pixels = scenes.batch("rgb", torch.arange(6))
    before, after = (read_image_tokenizer(folder).eval() for folder in (SHIPPED, trained))
    assert torch.equal(before.encode(pixels), after.encode(pixels))
    old, new = (load_file(folder / WEIGHTS_FILE) for folder in (SHIPPED, trained))
    assert {n: (v.shape, v.dtype) for n, v in old.items()} == {n: (v.shape, v.dtype) for n, v in new.items()}
    changed = {name.split(".")[2] for name in old if not torch.equal(old[name], new[name])}
    assert changed == {"decoder", "post_quant_conv"}
    assert {file.name for file in SHIPPED.iterdir()} == {file.name for file in trained.iterdir()}


def test_an_interrupted_training_ends_with_the_same_decoder(scenes, trained, tmp_path):
    for stop_before in (3, STEPS):
        vq = read_image_tokenizer(SHIPPED).train()
        if stop_before < STEPS:
            with interrupted(DecoderStage, at=stop_before):
                train(DecoderStage(vq, scenes), loop(STEPS), tmp_path)
        else:
            train(DecoderStage(vq, scenes), loop(STEPS), tmp_path)
    write_model(SHIPPED, vq, tmp_path / "janus")
    assert (tmp_path / "janus" / WEIGHTS_FILE).read_bytes() == (trained / WEIGHTS_FILE).read_bytes()


def test_the_edge_error_counts_differences_that_differ():
    step = torch.zeros(1, 3, 2, 4)
    step[..., 2:] = 0.5  # one edge of three to the right, in both rows; none below
    assert edge_error(step, torch.ones(1, 1, 2, 4)) == pytest.approx(0.5 / 3)
    assert edge_error(step, torch.ones(1, 1, 2, 4) * 4) == pytest.approx(2 / 3)
    assert edge_error(torch.full((1, 3, 2, 4), 0.7), torch.ones(1, 1, 2, 4)) == 0


def test_a_folder_of_another_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"No model\.safetensors"):
        read_image_tokenizer(tmp_path)
    other = tmp_path / "clip"
    other.mkdir()
    shutil.copy(SHIPPED.parent / "clip" / "open_clip_model.safetensors", other / WEIGHTS_FILE)
    with pytest.raises(ModelError, match="not a tiny Janus"):
        read_image_tokenizer(other)
