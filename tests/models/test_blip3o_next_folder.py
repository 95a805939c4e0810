"""Folders of BLIP3o-NEXT: as released, with more keys than are used, with the vision tokenizer elsewhere, and hostile ones."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from megaunigame.command_line import parsed
from megaunigame.commands.family import run
from megaunigame.errors import ModelError
from megaunigame.models.blip3o_next import Blip3oNext
from megaunigame.models.blip3o_next.configuration import OTHER_PARTS, RELEASED, Choice, read_config
from megaunigame.models.blip3o_next.keys import TOKENIZER
from megaunigame.models.blip3o_next.parts import FrozenPictures, trained_parts
from megaunigame.models.shapes import read_shape
from tests.models.shared import LENGTH, built, copied

FAMILY = "blip3o_next"
DC_AE, LIKE_DC_AE = read_shape(RELEASED)["vae"], {"sana": read_shape(RELEASED)["sana"]}
UNUSED = (
    *("lm_head.weight", TOKENIZER + "decoder.vision_model.encoder.layers.0.mlp.fc1.weight", TOKENIZER + "scale_layer.shift"),
    *(TOKENIZER + "encoder.head.probe", TOKENIZER + "encoder.post_layernorm.bias", TOKENIZER + "bottleneck.out_linear.bias"),
    *(TOKENIZER + "decode_task_layer.0.bias", TOKENIZER + "bottleneck.regularizer.stochastic_temperature_inv"),
)


@pytest.fixture
def changed(tiny, tmp_path):
    """`changed(key=value, ...)`: a copy of the folder with other settings; None takes one out."""
    copied(tiny.path, tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())

    def write(**changes):
        whole = {key: value for key, value in (raw | changes).items() if value is not None}
        (tmp_path / "config.json").write_text(json.dumps(whole))
        return tmp_path

    write.raw = raw
    return write


def test_names_are_the_official_ones(tiny):
    names = set(tiny.state)
    assert {"model.embed_tokens.weight", "model.norm.weight", "model.diffusion_connector.3.weight"} <= names
    assert {"model.sana.caption_norm.weight", "model.sana_vae.decoder.conv_out.bias"} <= names
    assert TOKENIZER + "bottleneck.regularizer.embedding_proj.weight" in names
    assert not any(name.startswith("lm_head") for name in names) and all(name.startswith("model.") for name in names)
    assert load_file(tiny.path / "model.safetensors").keys() == names


def test_keys_that_are_not_used_are_left_out(tiny, tmp_path):
    copied(tiny.path, tmp_path)
    more = {name: torch.zeros(2) for name in UNUSED}
    save_file({n: v.contiguous() for n, v in (tiny.state | more).items()}, tmp_path / "model.safetensors")
    path = str(tmp_path)
    assert Blip3oNext.weights(path).names() | Blip3oNext.frozen_weights(path).names() == set(tiny.state)


@pytest.mark.parametrize("kind", ["blip3o_qwen", "blip3o_qwen_inference", "blip3o_qwen_grpo"])
def test_a_released_configuration_has_the_released_parts(changed, kind):
    """It says nothing of the other parts, and has the settings of an older transformers."""
    text = read_shape(RELEASED)["text_config"]
    folder = changed(
        **dict.fromkeys(OTHER_PARTS),
        **{key: value for key, value in text.items() if key != "rope_parameters"},
        **{"model_type": kind, "rope_parameters": None, "layer_types": None, "rope_theta": 1000000, "rope_scaling": None},
        **{"image_start_token_id": 151674, "num_image_tokens": 65536, "mm_vision_tower": None, "diffusion_name_or_path": "x"},
    )
    config = read_config(folder)
    assert config.text_config.rope_parameters["rope_theta"] == 1000000 and config.text_config.hidden_size == 2048
    assert (config.image_size, config.latent_shape, config.vq_config.side) == (1024, (32, 32, 32), 27)
    assert (config.flow.sample_steps, config.flow.sample_shift, config.choice) == (30, 1.0, Choice(1200, 0.95))


def test_the_placeholder_of_the_official_training_may_be_in_the_tokenizer(tiny, tmp_path):
    copied(tiny.path, tmp_path)
    for token, legal in (("<image>", True), ("zebra", False)):
        tokenizer = tiny.processor().tokenizer
        tokenizer.add_tokens([token])
        tokenizer.save_pretrained(tmp_path)
        if legal:
            assert built(Blip3oNext, tmp_path, max_length=LENGTH)
            continue
        with pytest.raises(ModelError, match="has tokens up to"):
            built(Blip3oNext, tmp_path, max_length=LENGTH)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tie_word_embeddings": False}, "tie_word_embeddings is false"),
        ({"image_size": 30}, "image_size=30 is not a multiple of 4"),
        ({"image_size": "32"}, "image_size='32' in .*config.json must be a whole number"),
        ({"image_start_tag_id": None}, "config.json has no 'image_start_tag_id'"),
        ({"num_image_tokens": 64}, "num_image_tokens=64, and a vision tokenizer of 48 codes"),
        ({"vq_config": {"codebook_size": 48}}, "vq_config has codebook_size; it must have codebook_size, depth, embed_dim"),
        ({"flow": {"shift": 3.0}}, "flow has shift; it must have decode_sigma"),
        ({"choice": {"top_k": 0, "top_p": 0.9}}, "choice.top_k must be a whole number, at least 1; got 0"),
        (
            {"vae": {**DC_AE, "scaling_factor": 0.3189}, **LIKE_DC_AE},
            "vae.scaling_factor=0.3189, .* released .* 0.41407.*Write",
        ),
        ({"choice": {"top_k": 1.5, "top_p": 0.9}}, "choice.top_k must be a whole number, at least 1; got 1.5"),
        ({"choice": {"top_k": 5, "top_p": 1.5}}, r"choice.top_p must lie in \(0, 1\]; got 1.5"),
        ({"choice": {"top_k": "5", "top_p": 1.0}}, "choice.top_k='5' must be a number"),
        ({"sana": {}}, "sana has no 'in_channels'"),
        ({"sana": []}, r"sana=\[\] must be an object"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(changed, changes, message):
    with pytest.raises(ModelError, match=message):
        read_config(changed(**changes))


def test_an_autoencoder_of_other_latents_is_refused_and_the_setting_named(tiny, changed):
    folder = changed(vae=changed.raw["vae"] | {"latent_channels": 8}, sana=changed.raw["sana"] | {"in_channels": 8})
    save_file({n: v.contiguous() for n, v in tiny.state.items()}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"vae\.latent_channels .* means an autoencoder of 8 latent channels, .* has 4"):
        Blip3oNext.weights(str(folder))
    with pytest.raises(ModelError, match="diffusers cannot build AutoencoderDC of its settings in config.json .TypeError"):
        built(Blip3oNext, changed(vae=changed.raw["vae"] | {"width": 8}), max_length=LENGTH).build_frozen()


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("flow", {"sample_steps": 1.5}, "flow.sample_steps must be a whole number"),
        ("flow", {"sample_shift": float("nan")}, "flow.sample_shift must be a number; got nan"),
        ("vq_config", {"depth": 0}, "vq_config.depth must be a whole number, 1 or more; got 0"),
        ("vq_config", {"patch_size": 13}, "vq_config.image_size=12 is below vq_config.patch_size=13"),
        ("vq_config", {"num_attention_heads": 5}, "vq_config.hidden_size=32 is not a multiple of num_attention_heads=5"),
        ("vae", {"scaling_factor": "1"}, "scaling_factor must be a number above 0; got '1'"),
        ("vae", {"encoder_block_out_channels": 8}, "encoder_block_out_channels must be a list"),
        ("sana", {"num_layers": -1}, "The transformer's num_layers must not be negative"),
        ("sana", {"caption_channels": None}, "caption_channels=None in .* must be a whole number"),
    ],
)
def test_values_of_parts_that_cannot_be_used_are_refused(changed, part, change, message):
    with pytest.raises(ModelError, match=message):
        read_config(changed(**{part: changed.raw[part] | change}))


@pytest.mark.parametrize(("part", "change"), [("sana", {"num_layers": "2"}), ("vae", {"encoder_layers_per_block": 3})])
def test_modules_that_cannot_be_built_are_refused(changed, part, change):
    config = read_config(changed(**{part: changed.raw[part] | change}))
    with pytest.raises(ModelError, match="diffusers cannot build .* of its settings in config.json"):
        (trained_parts if part == "sana" else FrozenPictures)(config)


def test_parts_that_do_not_fit_are_refused(changed):
    with pytest.raises(ModelError, match="reads 5 channels and the autoencoder has 4"):
        read_config(changed(sana=changed.raw["sana"] | {"in_channels": 5}))
    with pytest.raises(ModelError, match="ends before the last of 48 codes"):
        read_config(changed(vocab_size=40))
    other = changed(image_start_tag_id=changed.raw["image_start_tag_id"] + 1)
    with pytest.raises(ModelError, match="image_start_tag_id=.*Take all files of one model"):
        Blip3oNext.open_processor(str(other), max_length=LENGTH)


def test_an_autoencoder_of_another_scale_decodes_the_same_and_has_other_latents(tiny, changed, picture):
    """The scale is between latents and transformer only."""
    folder = changed(vae=changed.raw["vae"] | {"scaling_factor": 1.4})
    save_file({n: v.contiguous() for n, v in tiny.state.items()}, folder / "model.safetensors")
    plain, scaled = tiny.load(), Blip3oNext.load(folder)
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    torch.testing.assert_close(scaled.encode_target(pixels), 2 * plain.encode_target(pixels), rtol=1e-5, atol=1e-5)
    decoded = [model.decode_target(model.encode_target(pixels)) for model in (plain, scaled)]
    torch.testing.assert_close(*decoded, rtol=1e-4, atol=1e-4)


def official_tokenizer(tiny, **regularizer):
    """The content of ta_tok.pth."""
    state = {name.removeprefix(TOKENIZER): value for name, value in tiny.state.items() if name.startswith(TOKENIZER)}
    settings = {"bottleneck": {"args": {"bottleneck_dim": 8, "regularizer": {"args": {"l2_normalized": True, **regularizer}}}}}
    return {"model": {"args": settings, "sd": state | {"decoder.x": torch.zeros(2)}}}


def test_a_release_without_its_vision_tokenizer_is_completed(tiny, tmp_path):
    release = copied(tiny.path, tmp_path / "release")
    own = {n: v.contiguous() for n, v in tiny.state.items() if not n.startswith(TOKENIZER)}
    save_file(own | {"lm_head.weight": torch.zeros(2)}, release / "model.safetensors")
    with pytest.raises(ModelError, match="autoencoder and vision tokenizer in .* missing: vision_tower"):
        Blip3oNext.load(release)
    torch.save(official_tokenizer(tiny), tmp_path / "ta_tok.pth")
    words = ["blip3o_next", "complete", "--release", str(release), "--ta-tok", str(tmp_path / "ta_tok.pth")]
    run(parsed("family", [*words, "--out", str(tmp_path / "out"), "--dtype", "float32"]))
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == set(tiny.state) and all(torch.equal(value, tiny.state[name]) for name, value in written.items())
    assert Blip3oNext.load(tmp_path / "out")


def test_other_files_are_no_vision_tokenizer(tiny, tmp_path):
    release, file = str(tiny.path), tmp_path / "ta_tok.pth"
    words = ["blip3o_next", "complete", "--release", release, "--ta-tok", str(file), "--out", str(tmp_path / "out")]
    torch.save({"weight": torch.zeros(2)}, file)
    with pytest.raises(ModelError, match="ta_tok.pth is not ta_tok.pth of csuhan/TA-Tok"):
        run(parsed("family", words))
    torch.save(official_tokenizer(tiny, l2_normalized=False), file)
    with pytest.raises(ModelError, match="l2_normalized is false"):
        run(parsed("family", words))
