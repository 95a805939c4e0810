"""Folders of Harmon: configurations that are refused, official keys, published parts."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from megaunigame.command_line import parsed
from megaunigame.commands.family import run
from megaunigame.errors import ModelError
from megaunigame.models.harmon.commands import read_parts
from megaunigame.models.harmon.keys import EMBEDDING, HEAD, translate
from megaunigame.models.harmon.model import Harmon
from megaunigame.models.harmon.sizes import FILES
from megaunigame.models.shapes import read_shape
from megaunigame.models.weights.tensor_files import TensorFiles
from tests.models.shared import copied, save_weights

FAMILY = "harmon"
KL16 = read_shape(FILES["1.5b"])["autoencoder"]


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("mar", "buffers", 0, "mar.buffers must be a whole number"),
        ("mar", "heads", 5, "mar.width=32 is not a multiple of mar.heads=5"),
        ("mar", "dropout", 1.0, r"mar.dropout must lie in \[0, 1\)"),
        ("mar", "experts", 2, "mar has .*experts.*; it must have"),
        ("autoencoder", "scaling_factor", 0, "scaling_factor=0 must be a number above 0"),
        ("autoencoder", "multipliers", [], "multipliers must have an entry"),
        ("autoencoder", "latent_channels", "4", "latent_channels must be a whole number"),
        ("llm", "tie_word_embeddings", False, "tie_word_embeddings must be true"),
        ("drawing", "rounds", 0, "drawing.rounds must be a whole number, 1 or more"),
        ("drawing", "noise_steps", 2000, "at most 1000"),
        ("drawing", "guidance_schedule", "linaer", "Did you mean 'linear'"),
        ("drawing", "start_level", 1000, "from 1 to 999"),
        ("drawing", "least_masked", 0, r"lie in \(0, 1\]"),
        ("drawing", "least_masked", "1", "drawing.least_masked must be a number; got '1'"),
        ("drawing", "temperature", 1, "drawing is .*; it may have"),
        (None, "image_size", 18, "image_size=18 is not a multiple of 4"),
        (None, "sizes", 18, "has the keys .*sizes.*; it must have"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(tiny, tmp_path, part, name, value, message):
    copied(tiny.path, tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    (config if part is None else config[part])[name] = value
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        Harmon.configuration(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_channels": 8}, "autoencoder.latent_channels in .* means an autoencoder of 8 latent channels, .* has 4"),
        ({"multipliers": [1, 1]}, "autoencoder.multipliers in .* means an autoencoder of 2 resolutions, .* has 3"),
        ({**KL16, "scaling_factor": 0.18215}, r"autoencoder.scaling_factor=0.18215, .* released .* 0.2325.*Write .*=0.2325"),
    ],
)
def test_an_autoencoder_of_another_scale_is_refused(tiny, tmp_path, changes, message):
    copied(tiny.path, tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["autoencoder"] |= changes
    file.write_text(json.dumps({**config, "image_size": 512, "source_size": 512, "mar": {**config["mar"], "image_size": 256}}))
    save_weights(Harmon, tiny.state, tmp_path)
    with pytest.raises(ModelError, match=message):
        Harmon.weights(str(tmp_path))


def test_the_shared_matrix_has_either_of_its_names(tiny, tmp_path):
    """transformers stores a shared matrix once; the official code stores it twice."""
    copied(tiny.path, tmp_path)
    others = {name: value for name, value in tiny.state.items() if name != HEAD}
    for names in ((EMBEDDING,), (HEAD, EMBEDDING)):
        save_weights(Harmon, others | {name: tiny.state[HEAD].clone() for name in names}, tmp_path)
        assert torch.equal(Harmon.load(tmp_path).lm_head.weight, tiny.state[HEAD])


def test_classes_of_the_first_autoencoder_are_left_out(tiny, tmp_path):
    copied(tiny.path, tmp_path)
    save_weights(Harmon, tiny.state | {"mar.class_emb.weight": torch.zeros(10, 32)}, tmp_path)
    assert Harmon.weights(str(tmp_path)).names() == {n for n in tiny.state if not n.startswith("vae.")}
    assert translate("mar.other") is None and translate("llm.model.layers.3.mlp.up_proj.weight") is not None


def published(tiny, folder, **entries):
    """harmon.pth and kl16.ckpt as they are published."""
    state = {name: value for name, value in tiny.state.items() if not name.startswith("vae.")}
    torch.save(state | {EMBEDDING: state[HEAD], "mar.class_emb.weight": torch.zeros(10, 32)}, folder / "harmon.pth")
    autoencoder = {name.removeprefix("vae."): value for name, value in tiny.state.items() if name.startswith("vae.")}
    torch.save(entries or {"model": autoencoder}, folder / "kl16.ckpt")
    return folder / "harmon.pth", folder / "kl16.ckpt"


def test_published_parts_become_a_folder_and_official_keys_again(tiny, tmp_path, monkeypatch):
    """Of a size that is as small as the tests need."""
    shape = tmp_path / "shape.json"
    config = json.loads((tiny.path / "config.json").read_text())
    ids = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")
    config["llm"] = {k: v for k, v in config["llm"].items() if k not in ids}
    shape.write_text(json.dumps({k: v for k, v in config.items() if k != "model_type"}))
    monkeypatch.setitem(FILES, "0.5b", shape)
    harmon, kl16 = published(tiny, tmp_path)
    parts = ["--harmon", str(harmon), "--autoencoder", str(kl16), "--tokenizer", str(tiny.path), "--image-size", "16"]
    words = ["harmon", "assemble", "--size", "0.5b", *parts, "--out", str(tmp_path / "out"), "--dtype", "float32"]
    run(parsed("family", words))
    model = Harmon.load(tmp_path / "out")
    for name, value in model.state_dict().items():
        assert torch.equal(value, tiny.state[name]), name
    assert torch.equal(model.frozen.module.quant_conv.weight, tiny.state["vae.quant_conv.weight"])
    out = tmp_path / "official"
    words = ["harmon", "official", "--model", str(tmp_path / "out"), "--out", str(out), "--dtype", "float32"]
    run(parsed("family", words))
    written, given = load_file(out / "model.safetensors"), torch.load(harmon)
    assert set(written) == set(given) - {"mar.class_emb.weight"}
    assert all(torch.equal(written[name], given[name]) for name in written)


def test_plain_and_averaged_weights_are_not_mixed_up(tiny, tmp_path):
    """A checkpoint of a training may hold both: which one is meant, its user says."""
    weights = {"quant_conv.weight": torch.zeros(8, 8, 1, 1)}
    harmon, kl16 = published(tiny, tmp_path, model=weights, model_ema=weights, epoch=3)
    with pytest.raises(ModelError, match=r"kl16.ckpt holds several sets of weights \(model, model_ema\)"):
        read_parts(harmon, kl16)
    torch.save({"model": weights, "epoch": 3}, kl16)
    assert set(TensorFiles([kl16]).index) == set(weights)


def test_a_file_with_an_autoencoder_of_its_own_is_refused(tiny, tmp_path):
    harmon, kl16 = published(tiny, tmp_path)
    torch.save(tiny.state, harmon)
    with pytest.raises(ModelError, match="contains an autoencoder"):
        read_parts(harmon, kl16)
