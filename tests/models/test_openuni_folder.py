"""Folders, key spellings, published parts and published sizes."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import InternVLForConditionalGeneration

from megaunigame.command_line import parsed
from megaunigame.commands.family import run
from megaunigame.errors import ModelError
from megaunigame.models.diffusion.flow import Flow
from megaunigame.models.diffusion.modules import autoencoder
from megaunigame.models.openuni import OpenUni
from megaunigame.models.openuni.assembling import assemble
from megaunigame.models.openuni.configuration import read_config
from megaunigame.models.openuni.folder import random_state, write_folder
from megaunigame.models.openuni.keys import official_weights, translate
from megaunigame.models.openuni.parts import trained_parts
from megaunigame.models.openuni.sizes import SIZES
from tests.models.shared import copied, same_logits
from tests.tiny import tiny_config

FAMILY = "openuni"


@pytest.mark.parametrize("connector_width", [64, 32])
def test_official_keys_go_out_and_come_in(tiny, tmp_path, connector_width):
    connector = {"hidden_size": connector_width, "intermediate_size": 2 * connector_width}
    config = tiny_config("openuni", tiny.tokenizer, connector=connector)
    state = random_state(config, seed=1)
    write_folder(tmp_path / "ours", config, state, tiny.tokenizer)
    ours = str(tmp_path / "ours")
    official = dict(official_weights(OpenUni.weights(ours), OpenUni.frozen_weights(ours)))
    assert {"meta_queries", "lmm.mlp1.1.weight", "lmm.language_model.lm_head.weight"} <= official.keys()
    assert "lmm.vision_model.encoder.layers.1.attn.qkv.bias" in official
    assert ("projector.0.weight" in official) == (connector_width != 64) != ("projector.weight" in official)
    save_file(official, copied(tmp_path / "ours", tmp_path / "theirs") / "model.safetensors")
    theirs = OpenUni.weights(str(tmp_path / "theirs"))
    assert theirs.names() | OpenUni.frozen_weights(str(tmp_path / "theirs")).names() == set(state)
    assert all(torch.equal(theirs.read(name), state[name]) for name in theirs.names())


def test_every_official_key_of_the_vision_tower_of_38b_has_a_name():
    for letter in "qk":
        ours = translate(f"lmm.vision_model.encoder.layers.0.attn.{letter}_norm.weight")
        assert ours == f"model.vision_tower.encoder.layer.0.attention.{letter}_norm.weight"


def test_published_parts_become_a_folder(tiny, tmp_path):
    """InternVL as transformers writes it (older spelling), the rest as diffusers does, and a file with official keys."""
    old, transformer, vae = {}, {}, {}
    for name, value in tiny.state.items():
        if name.startswith("model."):
            name = name.removeprefix("model.").replace("language_model.", "language_model.model.")
            old[name] = value
        elif name == "lm_head.weight":
            old["language_model.lm_head.weight"] = value
        elif name.startswith("transformer."):
            transformer[name.removeprefix("transformer.")] = value
        elif name.startswith("vae."):
            vae[name.removeprefix("vae.")] = value
    for folder, tensors in {"internvl": old, "transformer": transformer, "vae": vae}.items():
        (tmp_path / folder).mkdir()
        file = "model.safetensors" if folder == "internvl" else "diffusion_pytorch_model.safetensors"
        save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / folder / file)
    tuned = {"meta_queries": tiny.state["meta_queries.weight"]} | {
        name: value for name, value in tiny.state.items() if name.startswith(("connector.", "projector."))
    }
    tuned["transformer.proj_out.bias"] = torch.ones_like(tiny.state["transformer.proj_out.bias"])
    torch.save(tuned, tmp_path / "openuni.pth")
    folders = [tmp_path / "internvl", tmp_path / "transformer", tmp_path / "vae"]
    whole = assemble(tiny.config, *folders, tmp_path / "openuni.pth", seed=0)
    assert whole.names() == set(tiny.state)
    for name in whole.names() - {"transformer.proj_out.bias"}:
        assert torch.equal(whole.read(name), tiny.state[name]), name
    assert (whole.read("transformer.proj_out.bias") == 1).all()
    fresh = assemble(tiny.config, *folders, None, seed=0)
    assert fresh.read("meta_queries.weight").std().item() == pytest.approx(64**-0.5, rel=0.2)
    assert not torch.equal(fresh.read("projector.weight"), tiny.state["projector.weight"])
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    save_file({"encoder.conv_in.weight": torch.zeros(1)}, tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ModelError, match="missing: vae."):
        assemble(tiny.config, *folders, tmp_path / "openuni.pth", seed=0)


def test_a_family_has_its_own_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        run(parsed("family", ["openuni", "--help"]))
    assert "assemble" in capsys.readouterr().out


def test_a_family_without_commands_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        parsed("family", ["janus"])
    assert "openuni" in capsys.readouterr().err


def test_the_tool_writes_official_weights(tiny, tmp_path):
    words = ["openuni", "official", "--model", str(tiny.path), "--out", str(tmp_path / "out"), "--dtype", "float32"]
    run(parsed("family", words))
    written = load_file(tmp_path / "out" / "model.safetensors")
    copied(tiny.path, tmp_path / "back")
    save_file(written, tmp_path / "back" / "model.safetensors")
    back, ours = OpenUni.weights(str(tmp_path / "back")), OpenUni.weights(str(tiny.path))
    assert all(torch.equal(back.read(name), ours.read(name)) for name in ours.names())


def test_transformers_reads_the_understanding_side(tiny, model, picture):
    theirs = InternVLForConditionalGeneration(model.config.internvl).eval()
    theirs.set_attn_implementation("sdpa")  # ours takes no padding mask
    theirs.load_state_dict({n: v for n, v in tiny.state.items() if n.startswith(("model.", "lm_head."))})
    same_logits(model, theirs, picture)


def test_parts_have_their_published_sizes():
    counts = {}
    for size in ("b", "l", "38b"):
        config = SIZES[size]()
        with torch.device("meta"):
            parts, frozen = trained_parts(config), autoencoder(config.autoencoder)
        assert sum(p.numel() for p in frozen.parameters()) == 312_250_275
        assert (config.visual_tokens, config.queries, config.latent_shape) == (256, 256, (32, 16, 16))
        internvl = (*parts["model"].parameters(), *parts["lm_head"].parameters())
        groups = {"internvl": internvl, "sana": parts["transformer"].parameters(), "connector": parts["connector"].parameters()}
        counts[size] = {name: sum(p.numel() for p in group) for name, group in groups.items()}
    assert counts == {
        "b": {"internvl": 938_193_024, "sana": 591_747_872, "connector": 52_364_544},
        "l": {"internvl": 2_088_957_440, "sana": 1_604_462_752, "connector": 221_910_528},
        "38b": {"internvl": 38_388_164_992, "sana": 4_721_825_952, "connector": 221_910_528},
    }


def test_folders_that_cannot_be_used_are_refused(tiny, tmp_path):
    copied(tiny.path, tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())

    def written(**changes):
        (tmp_path / "config.json").write_text(json.dumps(raw | changes))
        return tmp_path

    with pytest.raises(ModelError, match="it must have autoencoder, connector, flow"):
        read_config(written(sampler={}))
    with pytest.raises(ModelError, match="flow has shift; it must have decode_sigma, sample_shift"):
        read_config(written(flow={"shift": 3.0}))
    with pytest.raises(ModelError, match="image_size=30 is not a multiple of 4"):
        read_config(written(image_size=30))
    with pytest.raises(ModelError, match="reads 5 channels and the autoencoder has 4"):
        read_config(written(transformer=raw["transformer"] | {"in_channels": 5}))
    written()
    state = {k: v.contiguous() for k, v in tiny.state.items()}
    save_file({**state, "meta_queries.weight": torch.zeros(5, 64)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"meta_queries.weight is \(5, 64\) instead of \(6, 64\)"):
        OpenUni.weights(str(tmp_path))


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        ({"train_shift": 0.0}, "shifts must be above 0"),
        ({"sample_steps": 0}, "sample_steps must be a whole number, at least 1"),
        ({"decode_sigma": 1.5}, "decode_sigma must lie in"),
    ],
)
def test_flows_that_cannot_be_followed_are_refused(flow, message):
    with pytest.raises(ModelError, match=message):
        Flow(**flow).check()


def test_without_diffusers_the_error_says_what_to_type(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ModelError, match=r"pip install 'megaunigame\[diffusion\]'"):
        tiny.load()
