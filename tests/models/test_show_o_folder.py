"""Folders of Show-o: the layout of a release, what is refused, and the tokens that are counted."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from megaunigame.errors import ModelError
from megaunigame.models.causal import reading
from megaunigame.models.shapes import read_shape
from megaunigame.models.show_o import ShowO
from megaunigame.models.show_o.configuration import RELEASED, read_config
from megaunigame.models.show_o.conversation import SPECIAL
from megaunigame.models.show_o.folder import train_tokenizer
from megaunigame.models.text.small_tokenizer import small_tokenizer
from megaunigame.step.rows import GenerateRow
from tests.models.shared import CORPUS, built, generate

FAMILY = "show_o"
RELEASE = {
    "_class_name": "Showo",
    "vocab_size": 58498,
    "llm_vocab_size": 50295,
    "llm_model_path": "microsoft/phi-1_5",
    "codebook_size": 8192,
    "num_vq_tokens": 1024,
    "w_clip_vit": False,
    "mask_token_id": 58497,
}

TEXT, VQ = (read_shape(RELEASED)[part] for part in ("text_config", "vq_config"))


def written(folder, **changes):
    (folder / "config.json").write_text(json.dumps({**RELEASE, **changes}))
    return folder


def changed(tiny, folder, **changes):
    shutil.copytree(tiny.path, folder, dirs_exist_ok=True)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **changes}))
    return folder


def test_the_configuration_of_a_release_is_completed(tmp_path):
    config = read_config(written(tmp_path))
    text = config.get_text_config()
    assert (text.hidden_size, text.num_hidden_layers, text.vocab_size) == (2048, 24, 58498)
    assert text.qk_layernorm and text.hidden_act == "gelu_new" and text.rope_parameters["partial_rotary_factor"] == 0.5
    assert (config.side, config.cell, config.mask_token) == (32, 16, 58497)
    assert (config.mask_schedule, config.generation_timesteps) == ("cosine", 50)
    assert read_config(written(tmp_path, generation_timesteps=18)).generation_timesteps == 18


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "Other"}, "model_type None; a Show-o folder has 'show_o'"),
        ({"w_clip_vit": True}, "w_clip_vit: this variant.*show-o-512x512"),
        ({"llm_model_path": "microsoft/phi-2"}, "llm_model_path 'microsoft/phi-2' is not phi-1_5.*Write text_config"),
        ({"vocab_size": 58497}, "vocab_size=58497, but .* make 58498"),
        ({"codebook_size": 4096, "vocab_size": 54402}, r"codebook_size=4096 is not 2\^code_bits, with 13 bits"),
        ({"num_vq_tokens": 1000}, "num_vq_tokens=1000 must be a square"),
        ({"mask_schedule": "cosinus"}, "Unknown mask_schedule 'cosinus'. Did you mean 'cosine'"),
        ({"generation_timesteps": 0}, "generation_timesteps=0 in .*config.json must be a whole number, 1 or more"),
        ({"generation_timesteps": 2.5}, "generation_timesteps=2.5 in .*config.json must be a whole number, 1 or more"),
        ({"num_vq_tokens": "64"}, "num_vq_tokens='64' in .*config.json must be a whole number, 1 or more"),
        ({"num_vq_tokens": -4}, "num_vq_tokens=-4 in .*config.json must be a whole number, 1 or more"),
        ({"mask_schedule": ["cosine"]}, r"mask_schedule=\['cosine'\] in .*config.json must be one of cosine, linear"),
        ({"vq_config": None}, "vq_config=None in .*config.json must be an object with the sizes of the vision tokenizer"),
        ({"text_config": "phi"}, "text_config='phi' in .*config.json must be an object with the sizes of the language model"),
        ({"text_config": TEXT | {"hidden_size": "64"}}, "config.json: text_config.hidden_size='64' must be a whole number, 1"),
        ({"text_config": TEXT | {"num_hidden_layers": 0}}, "text_config.num_hidden_layers=0 must be a whole number, 1 or more"),
        ({"text_config": TEXT | {"rope_theta": None}}, "text_config.rope_theta=None must be a number above 0"),
        ({"text_config": TEXT | {"layer_norm_eps": 0}}, "text_config.layer_norm_eps=0 must be a number above 0"),
        ({"vq_config": VQ | {"code_bits": "13"}}, r"config.json: vq_config.code_bits='13' must be a whole number, 1 or more"),
        ({"vq_config": VQ | {"encoder_blocks": 4}}, "vq_config.encoder_blocks=4 must be a list of whole numbers, 1 or more"),
        ({"vq_config": VQ | {"decoder_blocks": [1, 0]}}, r"vq_config.decoder_blocks=\[1, 0\] must be a list of whole numb"),
        ({"text_config": {"hidden_size": 8}}, "text_config has the keys .*hidden_size.*it must have"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path, changes, message):
    with pytest.raises(ModelError, match=message):
        read_config(written(tmp_path, **changes))


def test_a_missing_number_is_named(tmp_path):
    written(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({key: RELEASE[key] for key in ("_class_name", "vocab_size")}))
    with pytest.raises(ModelError, match="has no llm_vocab_size, codebook_size, num_vq_tokens"):
        read_config(tmp_path)


def test_keys_are_the_official_ones_in_two_files(tiny):
    model, frozen = (load_file(tiny.path / part / "model.safetensors") for part in ("", "magvitv2"))
    assert {key.split(".")[0] for key in model} == {"showo"} and {"showo.lm_head.bias", "showo.lm_head.weight"} <= set(model)
    assert {key.split(".")[0] for key in frozen} == {"encoder", "decoder", "quantize"}
    assert {"encoder.quant_conv.weight", "decoder.post_quant_conv.weight", "quantize.power_vals"} <= set(frozen)


def test_the_projector_of_the_other_variant_is_refused(tiny, tmp_path):
    shutil.copytree(tiny.path, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "model.safetensors"
    save_file({**load_file(file), "mm_projector.0.weight": torch.zeros(2, 2)}, file)
    with pytest.raises(ModelError, match="mm_projector.0.weight belongs to the variant .* CLIP-ViT"):
        ShowO.weights(str(tmp_path))


def test_unused_keys_are_left_out(tiny, tmp_path):
    shutil.copytree(tiny.path, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "model.safetensors"
    save_file({**load_file(file), "showo.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}, file)
    assert ShowO.weights(str(tmp_path)).names() == ShowO.weights(str(tiny.path)).names()


def test_a_folder_without_its_vision_tokenizer_says_what_is_missing(tiny, tmp_path):
    shutil.copytree(tiny.path, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "magvitv2")
    with pytest.raises(ModelError, match="has no vision tokenizer. .*copy .* of showlab/magvitv2 to .*/magvitv2/"):
        ShowO.weights(str(tmp_path))


def test_a_release_without_a_text_tokenizer_says_which_one_it_needs(tiny, tmp_path):
    shutil.copytree(tiny.path, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=f"No tokenizer.json in {tmp_path}. .* of microsoft/phi-1_5 there"):
        ShowO.open_processor(str(tmp_path), max_length=160)


def test_special_tokens_are_added_to_a_tokenizer_of_text(tiny, tmp_path, picture):
    """As released: the folder holds the tokenizer of the language model alone."""
    text = small_tokenizer(CORPUS, 290, ["<|endoftext|>"], pad="<|endoftext|>", bos="<|endoftext|>", eos="<|endoftext|>")
    whole = train_tokenizer(CORPUS, 300)
    assert len(whole) == len(text) + len(SPECIAL) == tiny.config.llm_vocab_size + len(SPECIAL)
    shutil.copytree(tiny.path, tmp_path, dirs_exist_ok=True)
    text.save_pretrained(tmp_path)
    ours, theirs = (ShowO.open_processor(str(folder), max_length=160) for folder in (tiny.path, tmp_path))
    assert [theirs.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL] == list(range(len(text), len(whole)))
    row = GenerateRow("a cube", picture(0), picture(1))
    assert torch.equal(generate(ours, row).tokens, generate(theirs, row).tokens)
    assert ours.format.grid.first == len(whole) and ours.format.grid == theirs.format.grid


def test_special_tokens_at_another_place_are_refused(tiny, tmp_path):
    longer = tiny.config.llm_vocab_size + 1
    folder = changed(tiny, tmp_path, llm_vocab_size=longer, vocab_size=tiny.config.vocab_size + 1)
    with pytest.raises(ModelError, match=rf"has \[PAD\] at {longer - 1}, and llm_vocab_size is {longer}"):
        ShowO.open_processor(str(folder), max_length=160)


def test_the_drawn_size_is_that_of_the_codes(tiny, tmp_path):
    shutil.copytree(tiny.path, tmp_path, dirs_exist_ok=True)
    (tmp_path / "processor_config.json").write_text('{"image_size": 24, "source_size": 12}')
    with pytest.raises(ModelError, match="image_size=24 in .*num_vq_tokens=16 in config.json draws 16 pixels. Leave image"):
        ShowO.open_processor(str(tmp_path), max_length=160)
    (tmp_path / "processor_config.json").write_text('{"image_size": 16, "source_size": 12}')
    processor = ShowO.open_processor(str(tmp_path), max_length=160)
    assert (processor.image_size, processor.source_size) == (16, 12)


def test_flash_attention_is_refused_where_it_is_installed(tiny, monkeypatch):
    monkeypatch.setattr(reading, "is_installed", lambda package: True)
    with pytest.raises(ModelError, match="flash_attention_2 takes causal masks only.*type model.attention=sdpa"):
        built(ShowO, tiny.path, max_length=160, attention="flash_attention_2")


def test_a_question_is_tokenized_as_in_the_release(tiny):
    """Where a piece ends, the official text has a token border too."""
    processor = tiny.processor()
    inputs = processor.prompt_inputs([[torch.zeros(3, 16, 16, dtype=torch.uint8)], []], ["what is it ?"] * 2)
    for row, text in enumerate(("USER: \nwhat is it ? ASSISTANT:", "USER: what is it ? ASSISTANT:")):
        tokens = inputs.tokens[row][inputs.attention[row]].tolist()
        asked = processor.tokenizer.encode(text, add_special_tokens=False)
        assert tokens[-len(asked) :] == asked
