"""Folders of Emu3.5: the official layout, Qwen3's configuration, published sizes, everything that must be refused."""

from __future__ import annotations

import base64
import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3ForCausalLM

from megaunigame.checkpoint.export import write_shards
from megaunigame.errors import ModelError
from megaunigame.models.emu3.configuration import read_config as read_emu3
from megaunigame.models.emu3_5 import Emu3p5
from megaunigame.models.emu3_5.configuration import IMAGE_AREA, Emu3p5Config, VisionConfig, read_config, read_sides
from megaunigame.models.emu3_5.folder import export_processor
from megaunigame.models.emu3_5.tokenizer import VOCABULARY
from tests.models.shared import copied, outputs, with_replaced

FAMILY = "emu3_5"

OFFICIAL = {
    "architectures": ["Emu3ForCausalLM"], "model_type": "Emu3", "vocab_size": 282926, "hidden_size": 5120,
    "intermediate_size": 25600, "num_hidden_layers": 64, "num_attention_heads": 64, "num_key_value_heads": 8,
    "rope_scaling": None,
}  # fmt: skip
OFFICIAL_TOKENIZER = {
    "model_type": "Emu3p5VisionVQ", "codebook_size": 131072, "embed_dim": 256, "z_channels": 256, "double_z": False,
    "in_channels": 3, "out_ch": 3, "ch": 256, "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 4, "attn_resolutions": [16],
    "resolution": 256, "dropout": 0.0,
}  # fmt: skip


def written(folder, *, language=None, vision=None):
    """A folder of the two released configurations with changes; `vision` None: as released."""
    (folder / "vision_tokenizer").mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(OFFICIAL | (language or {})))
    (folder / "vision_tokenizer" / "config.json").write_text(json.dumps(OFFICIAL_TOKENIZER if vision is None else vision))
    return folder


def test_the_released_configurations_have_the_published_parameters(tmp_path):
    config = read_config(written(tmp_path))
    with torch.device("meta"):
        parts = Emu3p5.trained_parts(config)
        frozen = Emu3p5.build_frozen(type("Holder", (), {"config": config}))
    trained = [p.numel() for part in parts.values() for p in part.parameters()]
    assert (sum(trained), len(trained)) == (34_103_460_864, 707)
    assert sum(p.numel() for p in frozen.parameters()) == 455_336_963 and len(frozen.state_dict()) == 543
    text = config.text_config
    assert (text.head_dim, text.rms_norm_eps, text.rope_parameters["rope_theta"]) == (128, 1e-5, 1e6)
    assert (text.attention_dropout, text.attention_bias, text.tie_word_embeddings) == (0.1, False, False)
    assert config.cell == 16 and read_sides(tmp_path, config) == (720, 720) and config.image_area == IMAGE_AREA
    values = {"head_dim": 96, "rms_norm_eps": 1e-4, "rope_theta": 5e5, "attention_dropout": 0.0, "image_area": 1024**2}
    other = read_config(written(tmp_path, language=values))
    text = other.text_config
    assert (text.head_dim, text.rms_norm_eps, text.rope_parameters["rope_theta"]) == (96, 1e-4, 5e5)
    assert text.attention_dropout == 0 and read_sides(tmp_path, other) == (1024, 1024)


def test_a_folder_has_the_official_keys(tiny):
    language = load_file(tiny.path / "model.safetensors")
    vision = load_file(tiny.path / "vision_tokenizer" / "model.safetensors")
    layer = "model.layers.1."
    assert {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"} <= set(language)
    assert {layer + "self_attn.q_norm.weight", layer + "mlp.gate_proj.weight", layer + "input_layernorm.weight"} <= set(
        language
    )
    assert {key.partition(".")[0] for key in language} == {"model", "lm_head"}
    assert {key.partition(".")[0] for key in vision} == {"encoder", "decoder", "quantize", "quant_conv", "post_quant_conv"}
    assert {"encoder.down.2.attn.0.proj_out.weight", "decoder.up.2.attn.1.q.weight", "encoder.mid.attn_1.k.bias"} <= set(vision)
    raw = json.loads((tiny.path / "config.json").read_text())
    assert raw["model_type"] == "Emu3" and raw["head_dim"] == 20 and raw["rope_theta"] == 4e4
    assert json.loads((tiny.path / "vision_tokenizer" / "config.json").read_text())["ch_mult"] == [1, 2, 1]


def test_a_written_configuration_is_read_as_it_was(tiny, tmp_path):
    text = {"initializer_range": 0.03, "attention_dropout": 0.25, "max_position_embeddings": 77, "hidden_act": "gelu"}
    vision = VisionConfig(96, 7, 5, 64, (1, 3, 2, 1), 3, (2, 8), 32, 4, 6)
    config = Emu3p5Config(copy.deepcopy(tiny.config.text_config), vision, image_area=1234)
    for name, value in text.items():
        setattr(config.text_config, name, value)
    config.write(tmp_path)
    again = read_config(tmp_path)
    assert again.vq_config == vision and again.image_area == 1234 and again.cell == 8
    ours, theirs = again.text_config.to_dict(), config.text_config.to_dict()
    assert {name: ours[name] for name in text} == text and ours == theirs


def test_an_export_has_the_same_bytes(tiny, tmp_path):
    path = str(tiny.path)
    (tmp_path / "release").mkdir()
    released = with_replaced(tiny.path, tmp_path / "release", b"", b"")
    (released / "emu3.tiktoken").write_text("IQ== 0\n")
    Emu3p5.write_settings(str(released), tmp_path / "out")
    for folder, weights in (("", Emu3p5.weights(path)), ("vision_tokenizer", Emu3p5.frozen_weights(path))):
        read = ((name, weights.read(name)) for name in sorted(weights.names()))
        write_shards(read, tmp_path / "out" / folder, torch.float32)
    files = sorted(file.relative_to(released) for file in released.rglob("*") if file.is_file())
    assert [str(f) for f in files if f.suffix in (".safetensors", ".tiktoken")] == [
        "emu3.tiktoken", "model.safetensors", "vision_tokenizer/model.safetensors",
    ]  # fmt: skip
    assert all((tmp_path / "out" / file).read_bytes() == (released / file).read_bytes() for file in files)
    Emu3p5.write_processor(str(released), tmp_path / "processor")
    names = {file.name for file in (tmp_path / "processor").iterdir()}
    assert {"tokenizer.json", "processor_config.json", "emu3.tiktoken"} <= names and "config.json" not in names


def test_a_folder_with_the_configuration_of_qwen3_is_the_same_model(tiny, model, tmp_path, picture):
    shutil.copytree(tiny.path, tmp_path, dirs_exist_ok=True)
    theirs = Qwen3ForCausalLM(tiny.config.text_config).eval()
    language = {name: value for name, value in tiny.state.items() if not name.startswith("vision_tokenizer.")}
    theirs.load_state_dict(language)
    theirs.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "qwen3"
    ours = tiny._replace(path=tmp_path).load()
    assert torch.equal(outputs(ours, picture), outputs(model, picture))
    inputs = model.processor.prompt_inputs([[picture(0)]], ["what ?"])
    tokens, real = inputs.tokens.clone(), inputs.attention[0]
    tokens[inputs.image_positions] = model.vision_tokenizer.encode(inputs.images[0]).flatten() + model.grid.first
    with torch.no_grad():
        logits = model.lm_head(model._read(model.embed(inputs), inputs.attention))[0, real]
        torch.testing.assert_close(logits, theirs(input_ids=tokens[:, real]).logits[0], rtol=1e-4, atol=1e-4)


def test_folders_of_emu3_and_of_emu3_5_are_told_apart(tmp_path):
    ours, emu3 = OFFICIAL_TOKENIZER, OFFICIAL_TOKENIZER | {"model_type": "Emu3VisionVQ"}
    for language, vision in (({"vocab_size": 184622}, ours), ({"model_type": "emu3"}, ours), ({"vocab_size": 7}, emu3)):
        with pytest.raises(ModelError, match="Emu3.*type model.family=emu3[.;]"):
            read_config(written(tmp_path, language=language, vision=vision))
    for language, vision in (({}, {}), ({"vocab_size": 7}, ours)):
        with pytest.raises(ModelError, match=r"holds Emu3.5, not Emu3; type model.family=emu3_5\."):
            read_emu3(written(tmp_path, language=language, vision=vision))
    shutil.rmtree(tmp_path / "vision_tokenizer")
    (tmp_path / "config.json").write_text(json.dumps(OFFICIAL))
    with pytest.raises(ModelError, match="type model.family=emu3_5"):
        read_emu3(tmp_path)


@pytest.mark.parametrize(
    ("language", "vision", "message"),
    [
        ({"rope_scaling": {"type": "linear"}}, {}, "has rope_scaling"),
        ({"tie_word_embeddings": True}, {}, "tie_word_embeddings is true"),
        ({"attention_bias": True}, {}, "attention_bias is true"),
        ({"model_type": "qwen3", "tie_word_embeddings": True}, {}, "tie_word_embeddings is true"),
        ({}, {"model_type": "vqgan"}, "vision_tokenizer/config.json describes model_type 'vqgan'.*'Emu3p5VisionVQ'"),
        ({}, {"double_z": True}, "double_z"),
        ({}, {"embed_dim": None}, "vision_tokenizer/config.json has no 'embed_dim'"),
    ],
)
def test_configurations_of_another_model_are_refused(tmp_path, language, vision, message):
    changed = {name: value for name, value in (OFFICIAL_TOKENIZER | vision).items() if value is not None}
    with pytest.raises(ModelError, match=message):
        read_config(written(tmp_path, language=language, vision=changed))


def test_what_is_missing_is_named(tiny, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**OFFICIAL, "vocab_size": 7}))
    with pytest.raises(ModelError, match="vision_tokenizer. Put config.json and .* of BAAI/Emu3.5-VisionTokenizer into"):
        read_config(tmp_path)
    written(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in OFFICIAL.items() if k != "hidden_size"}))
    with pytest.raises(ModelError, match="has no 'hidden_size'"):
        read_config(tmp_path)
    copied(tiny.path, tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="No tokenizer.json in .* no emu3.tiktoken and no emu3_vision_tokens.txt to make"):
        tiny._replace(path=tmp_path).processor()
    (tmp_path / "emu3.tiktoken").write_text("")
    with pytest.raises(ModelError, match="and no emu3_vision_tokens.txt to make it of"):
        tiny._replace(path=tmp_path).processor()


def test_a_picture_size_that_codes_cannot_fill_is_refused(tiny, tmp_path):
    copied(tiny.path, tmp_path)
    (tmp_path / "processor_config.json").write_text('{"image_size": 18}')
    with pytest.raises(ModelError, match=r"image_size=18 .*multiple of 4"):
        read_sides(tmp_path, read_config(tmp_path))


def test_codes_that_the_model_does_not_have_are_refused(tiny, tmp_path):
    swapped = with_replaced(tiny.path, tmp_path / "swapped", b"visual token 000047", b"visual token 00004x")
    for file in swapped.glob("*.json"):
        file.write_bytes(file.read_bytes().replace(b"visual token 000012", b"visual token 000047"))
    with pytest.raises(ModelError, match="must be consecutive"):
        tiny._replace(path=swapped).processor()
    narrow = with_replaced(tiny.path, tmp_path / "narrow", b"", b"")
    text = tiny.config.text_config.to_dict() | {"vocab_size": 30}
    (narrow / "config.json").write_text(json.dumps(text))
    with pytest.raises(ModelError, match=r"The tokenizer in .* has tokens up to \d+; with the vocab_size of its model, 29 is"):
        tiny._replace(path=narrow).processor()


def released_files(folder, words):
    """A release of a vocabulary of bytes and `words`, and of 48 codes."""
    tokens = [*(bytes([byte]) for byte in range(256)), *(word.encode() for word in words)]
    lines = (f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens))
    (folder / "emu3.tiktoken").write_text("\n".join(lines) + "\n")
    pictures = ["<|image token|>", "<|image start|>", "<|image end|>", *(f"<|visual token {code:06d}|>" for code in range(48))]
    (folder / "emu3_vision_tokens.txt").write_text("\n".join(pictures) + "\n")


def test_the_tokenizer_is_made_of_the_released_files(tiny, tmp_path):
    """Ids by the order of the release; a digit is always alone, and a composed character is one with its accent."""
    words = ["cu", "be", "cube", " cube", "12", "\u00e9"]
    copied(tiny.path, tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    released_files(tmp_path, words)
    processor = tiny._replace(path=tmp_path, config=tiny.config)
    (tmp_path / "config.json").write_text(json.dumps(tiny.config.text_config.to_dict() | {"vocab_size": 521}))
    rows = processor.processor()
    first = 256 + len(words)
    names = ["endoftext", "im_start", "im_end", "extra_0", "extra_204", "image token", "visual token 000000"]
    tokenizer = rows.tokenizer
    ids = tokenizer.convert_tokens_to_ids([f"<|{name}|>" for name in names])
    assert ids == [first + n for n in (0, 1, 2, 3, 207, 208, 211)]
    assert len(tokenizer) == first + 3 + 205 + 51 and rows.format.grid.first == first + 211
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|extra_203|>", "<|extra_204|>")
    assert tokenizer.pad_token == "<|endoftext|>" and rows.pad_id == first
    assert encode("cube cube12") == [258, 259, ord("1"), ord("2")] and encode("e\u0301") == [261]
    assert encode("a<|extra_204|>") == [ord("a"), first + 207] and tokenizer.decode(encode("a cube !")) == "a cube !"
    assert rows.text(encode("a cube<|extra_101|><|extra_204|>")) == "a cube"
    assert rows.format.plain.encode("a <|extra_101|>").escaped == 1
    lines = (tmp_path / "emu3.tiktoken").read_text().splitlines()
    (tmp_path / "emu3.tiktoken").write_text("\n".join(lines[:-9]))
    with pytest.raises(ModelError, match="make 512 tokens, and vocab_size in config.json is 521"):
        processor.processor()
    (tmp_path / "emu3.tiktoken").write_text("\n".join(lines[9:]))
    with pytest.raises(ModelError, match="has 253 tokens whose ranks are not 0 to 252"):
        processor.processor()
    (tmp_path / "emu3.tiktoken").write_text("IQ== 0\nnot a line of it\n")
    with pytest.raises(ModelError, match="emu3.tiktoken, line 2, is not a token in base64 and its rank"):
        processor.processor()


def test_a_vocabulary_is_not_copied_through_a_link_out_of_the_folder(tmp_path):
    (tmp_path / "secret").write_text("x")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / VOCABULARY).symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="is a link to .*secret, outside of its model folder"):
        export_processor(str(tmp_path / "model"), tmp_path / "out")
