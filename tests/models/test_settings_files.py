"""The small files of a model folder: the keys that families share, with values that are not legal."""

from __future__ import annotations

import json

import pytest
from transformers import Qwen2Config

from megaunigame.errors import ModelError
from megaunigame.models.text.small_tokenizer import small_tokenizer
from megaunigame.models.weights.settings_files import (
    CODE,
    check_tokens,
    config_from,
    copy_settings,
    read_channels,
    read_system_prompt,
    read_tokenizer,
    read_whole,
)

HALVES = (0.5, 0.4, 0.3)


def written(folder, name, **settings):
    (folder / name).write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("key", ["vocab_size", "llm_vocab_size"])
def test_every_token_has_a_row_of_the_embedding(tmp_path, key):
    tokenizer = small_tokenizer(["a b"], 300, ["</s>"], pad="</s>", bos=None, eos="</s>")
    tokens = len(tokenizer)
    check_tokens(tokenizer, tokens, tmp_path, key=key)
    said = f"in {tmp_path} has tokens up to {tokens - 1}; with the {key} of its model, {tokens - 2} is the last"
    with pytest.raises(ModelError, match=said):
        check_tokens(tokenizer, tokens - 1, tmp_path, key=key)


def test_a_system_prompt_is_a_text(tmp_path):
    assert read_system_prompt(tmp_path, "Help.") == "Help."
    assert read_system_prompt(written(tmp_path, "processor_config.json", system_prompt="")) == ""
    for value in (5, None, ["a"]):
        with pytest.raises(ModelError, match=r"system_prompt=.* in .*/processor_config.json must be a text"):
            read_system_prompt(written(tmp_path, "processor_config.json", system_prompt=value))


def test_a_whole_number_is_one_or_more(tmp_path):
    assert read_whole({"n": 1}, "n", 7, tmp_path) == 1 and read_whole({}, "n", 7, tmp_path) == 7
    for value in (0, -4, "64", 2.5, True, None):
        with pytest.raises(ModelError, match=f"^n={value!r} in {tmp_path} must be a whole number, 1 or more"):
            read_whole({"n": value}, "n", 7, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads=0 must be a whole number, 1 or more"),
        ({"hidden_size": -1}, "hidden_size=-1 must be"),
        ({"hidden_size": 30}, "hidden_size=30 must be a multiple of num_attention_heads=4"),
        ({"num_key_value_heads": 3}, "num_attention_heads=4 must be a multiple of num_key_value_heads=3"),
        ({"hidden_act": "gelo"}, "Unknown hidden_act 'gelo'. Did you mean 'gelu'"),
        ({"rope_parameters": {"rope_type": "defualt", "rope_theta": 1}}, "Unknown rope_type 'defualt'. Did you mean 'default'"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "1"}}, "rope_theta='1' must be a number above 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan must be a number above 0"),
        ({"dtype": "float33"}, "AttributeError: .*float33.*Copy the file"),
    ],
)
def test_layers_that_cannot_be_are_refused(tmp_path, changes, message):
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    assert config_from(Qwen2Config, sizes, tmp_path / "config.json").hidden_size == 32
    with pytest.raises(ModelError, match=rf"config\.json: {message}"):
        config_from(Qwen2Config, sizes | changes, tmp_path / "config.json")


def test_channels_are_three_numbers(tmp_path):
    assert read_channels(tmp_path, "image_mean", HALVES) == HALVES
    assert read_channels(written(tmp_path, "preprocessor_config.json", image_std=[1, 0.5, 2]), "image_std", HALVES) == (
        1,
        0.5,
        2,
    )
    for value in (None, [0.5], "abc", [1, 2, "3"], [1, 2, True], 0.5):
        written(tmp_path, "preprocessor_config.json", image_std=value)
        with pytest.raises(ModelError, match="image_std=.* in .*/preprocessor_config.json must be a list of three numbers"):
            read_channels(tmp_path, "image_std", HALVES)


@pytest.mark.parametrize("content", [{}, {"added_tokens": [], "model": {}}, {"added_tokens": 5}])
def test_a_tokenizer_that_is_none_is_refused(tmp_path, content):
    written(tmp_path, "tokenizer.json", **content)
    with pytest.raises(ModelError, match="/tokenizer.json cannot be read as a tokenizer .*Copy tokenizer.json and"):
        read_tokenizer(tmp_path)


@pytest.mark.fault(
    "a configuration that names Python code (auto_map), in a model folder that is exported",
    does="leaves it out of the copy, and says so; the code is not copied",
    lost="nothing",
)
@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json", "generation_config.json"],
)
def test_code_is_not_named_in_an_export(tmp_path, caplog, name):
    """At any depth, of this folder or of another repository, and however the key is written."""
    code = {
        "auto_map": {"AutoModel": "modeling_x.X", "AutoConfig": "other/repo--configuration_x.C"},
        "custom_pipelines": {"a": 1},
    }
    kept = {"model_type": "x", "text_config": {"hidden_size": 4}, "parts": [{"a": 1}], "é": None}
    nested = {**kept, "text_config": {**kept["text_config"], **code}, "parts": [{"a": 1, **code}], **code}
    model, out = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    (model / name).write_text(json.dumps(nested).replace('"auto_map"', '"\\u0061uto_map"', 1))
    (model / "modeling_x.py").write_text("")
    (model / "vocab.json").write_text('{"auto_map": 5}')
    copy_settings(model, out)
    assert json.loads((out / name).read_text()) == kept and not any(key in (out / name).read_text() for key in CODE)
    assert sorted(file.name for file in out.iterdir()) == sorted((name, "vocab.json"))
    assert (out / "vocab.json").read_text() == '{"auto_map": 5}', "a token"
    assert f"{out / name}: names of Python code (auto_map or custom_pipelines) are left out." in caplog.text


def test_configurations_without_code_are_copied_unchanged(tmp_path):
    text = '{ "a":1.50,\n"b": [1e3, "\\u00e9"]}'
    (tmp_path / "config.json").write_text(text)
    copy_settings(tmp_path, tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_text() == text
    for odd, words in (
        ("{", "is not JSON"),
        ("[" * 80 + "]" * 80, "holds a list"),
        ('{"a":' * 80 + "1" + "}" * 80, "nested deeper"),
    ):
        (tmp_path / "config.json").write_text(odd)
        with pytest.raises(ModelError, match=rf"config\.json .*{words}"):
            copy_settings(tmp_path, tmp_path / "other")
