"""A model is found by its folder alone, whatever its family."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

import megaunigame
from megaunigame import registry
from megaunigame.checkpoint.adapter_folder import ADAPTER_SETTINGS, ADAPTER_WEIGHTS
from megaunigame.errors import ConfigError, ModelError
from megaunigame.inference.command_options import add_model_options, source_of
from megaunigame.inference.families import family_of
from megaunigame.inference.loading import default_guidance
from megaunigame.inference.redraws import FILE, SENTENCES, Redraw, chosen, redraws_of_folder, redraws_of_recipe, write_redraws
from megaunigame.inference.source import find_source
from megaunigame.launching import options_of
from megaunigame.models.base import UnifiedModel
from megaunigame.registry import available, find
from tests.inference.conftest import WEIGHTS
from tests.multi_process.tiny_run import write_family, write_recipe
from tests.refusals import refused

FAMILIES = available("models", UnifiedModel)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_found_loaded_and_used(tmp_path, family):
    write_family(tmp_path / "model", family)
    model = megaunigame.load(tmp_path / "model", device="cpu")
    assert model.source.family.name == family and model.network.name == family
    assert model.network.processor.max_length == model.source.family.trained_positions(str(tmp_path / "model"))
    picture = model.draw("a red ball", guidance=2.0)
    assert isinstance(model.ask(picture, "what is it ?", max_tokens=3), str)
    assert model.redraw(picture, "depth").size == picture.size
    others = [name for name in FAMILIES if name != family]
    for other in others[:2]:
        with pytest.raises(ModelError):
            family_of(tmp_path / "model", other)


def test_a_folder_of_no_family_is_refused_with_what_each_says(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match="No family reads") as caught:
        find_source(tmp_path)
    assert all(f"\n  {name}: " in str(caught.value) for name in FAMILIES)
    with pytest.raises(ConfigError, match="No folder .*nowhere. Give a model folder"):
        find_source(tmp_path / "nowhere")


def test_the_shipped_model_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_source("megaunigame/tiny_world/weights/janus").folder == WEIGHTS


def test_identity_is_that_of_the_weights(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(WEIGHTS, copy)
    assert find_source(copy).identity == find_source(WEIGHTS).identity
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert find_source(copy).identity != find_source(WEIGHTS).identity


def test_identity_of_adapters_has_what_they_are_merged_with(tmp_path):
    settings = {"r": 1, "lora_alpha": 2, "base_model_name_or_path": str(WEIGHTS)}
    (tmp_path / ADAPTER_SETTINGS).write_text(json.dumps(settings))
    with refused(f"{tmp_path} has no {ADAPTER_WEIGHTS}. Give a folder of adapters"):
        find_source(tmp_path)
    save_file({"base_model.model.a.lora_A.weight": torch.ones(1, 1)}, tmp_path / ADAPTER_WEIGHTS)
    found = []
    for change in ({}, {"lora_alpha": 2.0}, {"r": 2}, {"lora_alpha": 4}, {"use_rslora": True}, {"use_dora": True}):
        (tmp_path / ADAPTER_SETTINGS).write_text(json.dumps(settings | change))
        found.append(find_source(tmp_path).identity)
    assert found[0] == found[1] and len(set(found)) == 5


def test_only_a_run_has_an_average():
    with refused(f"{WEIGHTS} is not a run", "Leave out --ema (ema=True)."):
        megaunigame.load(WEIGHTS, ema=True)


def test_a_family_of_a_plugin_is_named(tmp_path, monkeypatch):
    """Its own module is its name."""
    monkeypatch.setattr(registry, "_plugins", [])
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_janus.py").write_text(
        "from megaunigame.models.janus import Janus\nclass Mine(Janus):\n    name = 'my_janus'\n"
    )
    with refused("Unknown models name 'my_janus'"):
        megaunigame.load(WEIGHTS, family="my_janus")
    model = megaunigame.load(WEIGHTS, family="my_janus", plugins=["my_janus"], device="cpu")
    assert model.network.name == "my_janus"
    parser = options_of("")
    add_model_options(parser)
    typed = parser.parse_args([str(WEIGHTS), "--family", "my_janus", "--plugins", "my_janus", "--plugins", "no_such_module"])
    with refused("plugins: no module 'no_such_module'"):
        source_of(typed)


def test_how_a_model_redraws_is_that_of_its_training(tmp_path):
    from megaunigame.config import load_recipe

    rows = {"depth": 1, "pixel": 1}
    unimrg = {"rows": {"understanding": 1, **rows}, "own_prompts": {"depth": ["the depth ."]}, "geometry": "fit"}
    recipe = load_recipe(str(write_recipe(tmp_path / "a.yaml", tmp_path, objectives={"unimrg": unimrg})), [])
    trained = redraws_of_recipe(recipe)
    assert trained["depth"] == Redraw("the depth .", "fit") and set(trained) == {"depth", "pixel"}
    generation = write_recipe(tmp_path / "b.yaml", tmp_path)
    assert redraws_of_recipe(load_recipe(str(generation), [])) == {"pixel": Redraw("draw this image again .", "crop")}

    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir(), out.mkdir()
    (base / FILE).write_text(json.dumps({"edges": {"prompt": "edges .", "geometry": "crop"}}))
    write_redraws(out, base, recipe)
    assert redraws_of_folder(out) == {"edges": Redraw("edges .", "crop"), **trained}
    assert chosen("depth", trained) == trained["depth"]
    assert chosen("depth", trained, "deep", "crop") == Redraw("deep", "crop")
    assert chosen("segmentation", trained) == Redraw(SENTENCES["segmentation"], "squash")
    assert redraws_of_folder(WEIGHTS) == {"pixel": Redraw("draw this image again .", "crop")}
    (base / FILE).write_text(json.dumps({"depth": {"prompt": "a", "geometry": "round"}}))
    with pytest.raises(ModelError, match="an entry has a `prompt` and a `geometry`"):
        redraws_of_folder(base)


@pytest.mark.parametrize(("family", "scale"), [("harmon", 3.0), ("blip3o_next", 2.0), ("bagel", 4.0), ("emu3", 5.0)])
def test_a_folder_without_guidance_has_that_of_the_release(tmp_path, family, scale):
    find("models", family, UnifiedModel).sizes["tiny"](tmp_path)
    settings = tmp_path / "generation_config.json"
    settings.unlink(missing_ok=True)
    assert default_guidance(find_source(tmp_path)) == scale
    settings.write_text('{"guidance_scale": 1.5}')
    assert default_guidance(find_source(tmp_path)) == 1.5
