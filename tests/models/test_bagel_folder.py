"""Folders of BAGEL: the files of a release, official keys both ways, and folders that cannot be used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megaunigame.errors import ModelError
from megaunigame.models.bagel import Bagel, configuration
from megaunigame.models.bagel.commands import add_commands
from megaunigame.models.bagel.keys import AUTOENCODER, TABLES, official, translate
from megaunigame.models.bagel.tables import whole_table
from megaunigame.models.shapes import read_shape
from megaunigame.models.weights.renamed import RenamedWeights
from megaunigame.models.weights.settings_files import write_settings_file
from tests.models.shared import LENGTH, built, outputs

FAMILY = "bagel"
SHAPE = Path(__file__).parents[1] / "tiny/bagel.json"
FLUX = read_shape(configuration.RELEASED)["vae_config"]


@pytest.fixture
def release(tiny, tmp_path, monkeypatch):
    """The folder with the files and keys of a release, and the rest as small as the tiny model."""
    monkeypatch.setattr(configuration, "RELEASED", SHAPE)
    folder, config = shutil.copytree(tiny.path, tmp_path / "release"), tiny.config
    (folder / "model.safetensors").unlink()
    write_settings_file(folder / "config.json", {"model_type": "another"})
    write_settings_file(folder / "llm_config.json", {**config.text.to_dict(), "tie_word_embeddings": True})
    vision = {**config.vision.to_dict(), "num_hidden_layers": config.vision.num_hidden_layers + 1}
    write_settings_file(folder / "vit_config.json", vision)
    state = {official(n): v.contiguous() for n, v in tiny.state.items() if not n.startswith(AUTOENCODER)}
    state |= {key: whole_table(getattr(config, setting), config.width) for key, setting in TABLES.items()}
    save_file(state, folder / "ema.safetensors")
    frozen = {official(n): v.contiguous() for n, v in tiny.state.items() if n.startswith(AUTOENCODER)}
    save_file(frozen, folder / "ae.safetensors")
    return folder


def test_a_release_is_read_as_it_is(tiny, release, picture):
    assert Bagel.configuration(str(release)).vision.num_hidden_layers == tiny.config.vision.num_hidden_layers
    assert torch.equal(outputs(Bagel.load(release, max_length=LENGTH), picture), outputs(tiny.load(), picture))
    assert "language_model.model.layers.0.mlp_moe_gen.up_proj.weight" in load_file(release / "ema.safetensors")


def written(arguments):
    """What a command of the family writes."""
    from argparse import ArgumentParser

    parser = ArgumentParser()
    add_commands(parser.add_subparsers())
    options = parser.parse_args(arguments)
    return dict(options.tensors(options))


def test_official_keys_are_written_back(tiny, release):
    for command, file in (("official", "ema.safetensors"), ("autoencoder", "ae.safetensors")):
        expected = load_file(release / file)
        found = written([command, "--model", str(tiny.path)])
        assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
    assert {translate(official(name)) for name in tiny.state} == set(tiny.state)


def test_averages_and_last_weights_in_one_folder_are_refused(tiny, release):
    shutil.copy(release / "ema.safetensors", release / "model.safetensors")
    with pytest.raises(ModelError, match=r"ema\.safetensors and model\.safetensors: averaged weights.*Leave one of them"):
        Bagel.weights(str(release))
    (release / "ema.safetensors").unlink()
    assert Bagel.weights(str(release)).names() == {n for n in tiny.state if not n.startswith(AUTOENCODER)}


def test_a_release_without_its_autoencoder_is_refused(release):
    (release / "ae.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no ae\.safetensors\. Copy the autoencoder"):
        Bagel.weights(str(release))


def change_weights(file, change):
    save_file({key: value.contiguous() for key, value in change(load_file(file)).items()}, file)


@pytest.mark.parametrize("change", [{"layer_module": "Qwen2MoEDecoderLayer"}, {"qk_norm": False}])
def test_other_experts_are_refused(release, change):
    file = release / "llm_config.json"
    write_settings_file(file, json.loads(file.read_text()) | change)
    with pytest.raises(ModelError, match=r"llm_config\.json has layer_module.*a BAGEL has 'Qwen2MoTDecoderLayer' and true"):
        Bagel.configuration(str(release))


def test_other_experts_in_one_file_are_refused(tiny, tmp_path):
    raw = tiny.config.to_dict()
    write_settings_file(tmp_path / "config.json", raw | {"text_config": raw["text_config"] | {"layer_module": "X"}})
    with pytest.raises(ModelError, match=r"config\.json has layer_module 'X'.*a BAGEL has 'Qwen2MoTDecoderLayer'"):
        Bagel.configuration(str(tmp_path))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("_moe_gen", r"no second set of weights.*Qwen2MoTDecoderLayer .no key with '_moe_gen'"),
        ("lm_head", r"no head of its own.*tie_word_embeddings=false"),
        ("vit_model", "no vision tower, as a training with visual_und=False"),
        ("vae2llm", "no layers that read and draw latents, as a training with visual_gen=False"),
    ],
)
def test_a_checkpoint_without_a_part_is_refused_and_the_part_named(release, part, message):
    change_weights(release / "ema.safetensors", lambda state: {key: v for key, v in state.items() if part not in key})
    with pytest.raises(ModelError, match=f"{message}.*Give weights of a whole BAGEL"):
        Bagel.weights(str(release))


TOWER = "vit_model.vision_model.embeddings.patch_embedding.weight"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("latent_pos_embed.pos_embed", torch.zeros(16, 64), "has 16 places, and max_latent_size=8 means 64.*max_latent_size=4"),
        (
            "vit_pos_embed.pos_embed",
            torch.zeros(9, 64),
            "9 places, and vit_max_num_patch_per_side=4.*vit_max_num_patch_per_side=3",
        ),
        ("vae2llm.weight", torch.zeros(64, 4), "latent_patch_size=2 and vae_config.channels=4 mean .* 16 .* reads 4.*size=1"),
        ("latent_pos_embed.pos_embed", torch.zeros(()), "has 1 places, and max_latent_size=8 means 64"),
        ("vae2llm.weight", torch.zeros(64), "latent tokens of 16 numbers, and vae2llm.weight in .* reads 1"),
        (TOWER, torch.zeros(32, 27), r"vision_config.patch_size=4 means patches of 48 .* reads 27.*patch_size=3"),
    ],
)
def test_a_checkpoint_of_other_edges_is_refused_and_the_setting_named(release, key, value, message):
    change_weights(release / "ema.safetensors", lambda state: state | {key: value})
    with pytest.raises(ModelError, match=message):
        Bagel.weights(str(release))


def test_every_part_is_in_one_file_only(tiny, release, tmp_path):
    """Averaged weights, the last ones and the autoencoder have files of their own; which is read is never a guess."""
    average, frozen = load_file(release / "ema.safetensors"), load_file(release / "ae.safetensors")
    exported = shutil.copytree(tiny.path, tmp_path / "exported")
    save_file({key: value + 1 for key, value in frozen.items()}, exported / "ae.safetensors")
    with pytest.raises(
        ModelError, match=r"model\.safetensors has an autoencoder of its own .vae\.\S+, and ae\.safetensors is next"
    ):
        Bagel.weights(str(exported))
    save_file(average | frozen, release / "ema.safetensors")
    with pytest.raises(ModelError, match=r"ema\.safetensors has an autoencoder of its own .*move one away"):
        Bagel.weights(str(release))
    save_file(average, release / "ema.safetensors")
    for name in ("lm_head.weight", "encoder.down_blocks.0.weight"):
        save_file({name: torch.zeros(2)}, release / "ae.safetensors")
        with pytest.raises(ModelError, match=rf"ae\.safetensors has the key {name}, which is not one of FLUX's.*Copy ae"):
            Bagel.weights(str(release))
    (release / "ae.safetensors").unlink()
    (release / "ema.safetensors").rename(release / "model.safetensors")
    with pytest.raises(ModelError, match=r"a language model, and no autoencoder. Copy ae\.safetensors"):
        Bagel.weights(str(release))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("channels", 8, "vae_config.channels .* means an autoencoder of 8 latent channels, and the one there has 4"),
        ("multipliers", [1, 1, 1], "vae_config.multipliers .* means an autoencoder of 3 resolutions, and the one there has 2"),
        ("blocks", 2, "The autoencoder in .* checkpoint of another model"),
    ],
)
def test_an_autoencoder_of_another_shape_is_refused_before_weights_are_read(tiny, tmp_path, monkeypatch, name, value, message):
    monkeypatch.setattr(RenamedWeights, "read", None)
    folder = shutil.copytree(tiny.path, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    config["vae_config"][name] = value
    write_settings_file(folder / "config.json", config)
    with pytest.raises(ModelError, match=message):
        Bagel.load(folder, max_length=LENGTH)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vae_config": {"scale": 1.0}}, "vae_config has the keys"),
        (
            {"vae_config": {**FLUX, "scale": 1.5305}},
            "vae_config.scale=1.5305, .* released .* 0.3611.*Write vae_config.scale=0.3611",
        ),
        ({"vae_config": {**FLUX, "shift": 0}}, "vae_config.shift=0, .* released .* with 0.1159"),
        ({"vae_config": {**FLUX, "scale": "1"}}, "vae_config.scale='1' must be a number above 0"),
        ({"vae_config": {**FLUX, "channels": 4.0}}, "vae_config.channels=4.0 must be a whole number"),
        ({"vae_config": {**FLUX, "multipliers": 4}}, "vae_config.multipliers=4 must be a list"),
        ({"flow": {"start": "0"}}, "flow.start='0' must be a number"),
        ({"flow": {"edit_scale": "2"}}, "flow.edit_scale='2' must be a number"),
        ({"flow": {"edit_scale": 10**400}}, "flow.edit_scale=1000.* must be a number"),
        ({"vae_config": {**FLUX, "shift": 10**400}}, "vae_config.shift=1000.* must be a number"),
        ({"flow": {"train_shift": float("nan")}}, "flow.train_shift=nan must be a number"),
        ({"flow": {"renorm": 3}}, "Unknown flow.renorm '3'"),
        ({"flow": {"points": 3}}, "flow=.* must be an object with some of train_shift"),
        ({"flow": {"renorm": "local"}}, "Unknown flow.renorm 'local'"),
        ({"flow": {"sample_points": 1}}, "flow.sample_points=1 must be a whole number, 2 or more"),
        ({"flow": {"decode_time": 0}}, r"flow.decode_time=0 must lie in \(0, 1\]"),
        ({"max_latent_size": "8"}, "max_latent_size='8'.* must be a whole number"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tiny, tmp_path, changes, message):
    write_settings_file(tmp_path / "config.json", tiny.config.to_dict() | changes)
    with pytest.raises(ModelError, match=message):
        Bagel.configuration(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "value"),
    [("base_channels", 1.5), ("base_channels", 33), ("blocks", 0), ("multipliers", []), ("scale", "1"), ("shift", None)],
)
def test_numbers_of_the_autoencoder_that_cannot_be_used_are_refused(tiny, tmp_path, name, value):
    config = tiny.config.to_dict()
    write_settings_file(tmp_path / "config.json", config | {"vae_config": config["vae_config"] | {name: value}})
    with pytest.raises(ModelError, match=name):
        Bagel.configuration(str(tmp_path))


@pytest.mark.parametrize(("name", "side"), [("image_size", 18), ("image_size", 36), ("source_size", 14), ("source_size", 20)])
def test_sides_without_places_in_the_tables_are_refused(tiny, tmp_path, name, side):
    folder = shutil.copytree(tiny.path, tmp_path / "other")
    file = folder / "processor_config.json"
    write_settings_file(file, json.loads(file.read_text()) | {name: side})
    with pytest.raises(ModelError, match=f"{name}={side} .in .*must be a multiple of 4, .* and .* at most"):
        built(Bagel, folder, max_length=LENGTH)
