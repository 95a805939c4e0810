"""Folders of Emu3: three spellings of the keys, the official layout, published sizes, everything that must be refused."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import save_file
from transformers import Emu3Config, Emu3ForConditionalGeneration, Emu3VQVAE
from transformers.initialization import no_init_weights

from megaunigame.errors import ModelError
from megaunigame.models.emu3 import Emu3
from megaunigame.models.emu3.configuration import IMAGE_AREA, read_config, read_sides
from tests.models.shared import copied, outputs, with_replaced

FAMILY = "emu3"

OFFICIAL = {
    "model_type": "Emu3", "vocab_size": 184622, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_act": "silu", "max_position_embeddings": 9216,
    "rms_norm_eps": 1e-5, "attention_dropout": 0.1, "initializer_range": 0.02, "pad_token_id": 151643, "bos_token_id": 151849,
    "eos_token_id": 151850, "rope_theta": 1000000.0, "rope_scaling": None, "image_area": 518400,
}  # fmt: skip
OFFICIAL_TOKENIZER = {
    "model_type": "Emu3VisionVQ", "codebook_size": 32768, "embed_dim": 4, "z_channels": 4, "double_z": False, "in_channels": 3,
    "out_channels": 3, "temporal_downsample_factor": 4, "ch": 256, "ch_mult": [1, 2, 2, 4], "num_res_blocks": 2,
    "attn_resolutions": [3], "dropout": 0.0,
}  # fmt: skip


def official_states(state):
    """Hugging Face names -> official keys of language model and vision tokenizer, spelled out independently of the reader."""
    language, vision = {}, {}
    for name, tensor in state.items():
        key = name.removeprefix("model.vqmodel.")
        if key == name:
            language[name.replace("model.text_model.", "model.")] = tensor
            continue
        for ours, theirs in (
            ("encoder.down_block.down.", "encoder.down."),
            ("decoder.up_block.up.", "decoder.up."),
            ("middle_block.attn_norm.", "mid.attn_1.norm."),
            ("middle_block.", "mid."),
            (".q_proj.", ".q."),
            (".k_proj.", ".k."),
            (".v_proj.", ".v."),
            (".out_proj.", ".proj_out."),
        ):
            key = key.replace(ours, theirs)
        key = re.sub(r"attn_norms\.(\d+)", r"attn.\1.norm", key)
        convolved = re.search(r"attn(_1|\.\d+)\.(q|k|v|proj_out)\.weight", key)
        vision[key] = tensor[:, :, None, None] if convolved else tensor
    return language, vision


def official_folder(path, tiny):
    """The two repositories of a release, the second in the first, and a tokenizer.json."""
    (path / "vision_tokenizer").mkdir(parents=True)
    language, vision = official_states(tiny.state)
    save_file({k: v.contiguous() for k, v in language.items()}, path / "model.safetensors")
    save_file({k: v.contiguous() for k, v in vision.items()}, path / "vision_tokenizer" / "model.safetensors")
    text, vq = tiny.config.text_config, tiny.config.vq_config
    ours = {key: getattr(text, key) for key in OFFICIAL if hasattr(text, key) and "rope" not in key}
    (path / "config.json").write_text(json.dumps(OFFICIAL | ours | {"model_type": "Emu3", "image_area": 300}))
    sizes = {"codebook_size": 48, "ch": vq.base_channels, "ch_mult": [1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [2]}
    (path / "vision_tokenizer" / "config.json").write_text(json.dumps(OFFICIAL_TOKENIZER | sizes))
    tiny.tokenizer.save_pretrained(path)
    (path / "processor_config.json").write_text(json.dumps({"source_size": 12}))
    return path


def test_the_official_layout_gives_the_same_model(tiny, model, tmp_path, picture):
    folder = official_folder(tmp_path / "official", tiny)
    theirs = tiny._replace(path=folder).load()
    assert theirs.processor.image_size == 16  # the largest multiple of 4 within the square root of the area
    assert torch.equal(outputs(theirs, picture), outputs(model, picture))


def test_an_official_folder_is_exported_as_a_hugging_face_one(tiny, model, tmp_path, picture):
    folder = official_folder(tmp_path / "official", tiny)
    out = tmp_path / "out"
    Emu3.write_settings(str(folder), out)
    both = [Emu3.weights(str(folder)), Emu3.frozen_weights(str(folder))]
    save_file({n: w.read(n).contiguous() for w in both for n in w.names()}, out / "model.safetensors")
    assert torch.equal(outputs(tiny._replace(path=out).load(), picture), outputs(model, picture))
    raw = json.loads((out / "config.json").read_text())
    assert raw["model_type"] == "emu3" and len(raw["vocabulary_map"]) == 50
    assert read_sides(out, read_config(out)) == (16, 12)
    theirs = Emu3ForConditionalGeneration.from_pretrained(out).state_dict()
    assert all(torch.equal(theirs[name], value) for name, value in tiny.state.items())


def test_the_older_spelling_of_transformers_is_read(tiny, model, tmp_path, picture):
    old = {}
    for name, value in tiny.state.items():
        name = name.replace("model.text_model.", "text_model.model.").replace("model.vqmodel.", "vqmodel.")
        old["text_model.lm_head.weight" if name == "lm_head.weight" else name] = value.contiguous()
    save_file(old, copied(tiny.path, tmp_path) / "model.safetensors")
    assert torch.equal(outputs(tiny._replace(path=tmp_path).load(), picture), outputs(model, picture))


def test_transformers_reads_the_folder(tiny, model, picture):
    theirs = Emu3ForConditionalGeneration.from_pretrained(tiny.path).eval()
    assert all(torch.equal(tensor, tiny.state[name]) for name, tensor in theirs.state_dict().items())
    inputs = model.processor.prompt_inputs([[picture(0)]], ["what ?"])
    real = inputs.attention[0]
    with torch.no_grad():
        codes = theirs.model.get_image_tokens(inputs.images[0], torch.tensor([[12, 12]]))
        tokens, rows = inputs.tokens.clone(), model.processor.format.source_grid
        tokens[inputs.image_positions] = codes[rows.places()].long()
        logits = theirs(input_ids=tokens[:, real]).logits
        ours = model.lm_head(model._read(model.embed(inputs), inputs.attention))
        drawn = torch.arange(16).view(1, 4, 4)
        decoded = theirs.model.vqmodel.decode(drawn)
    assert codes[3::4].tolist() == [rows.line_end] * 3
    torch.testing.assert_close(ours[:, real], logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.vision_tokenizer.decode_codes(drawn), decoded, rtol=1e-5, atol=1e-5)


def test_published_sizes(tmp_path):
    (tmp_path / "vision_tokenizer").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(OFFICIAL))
    (tmp_path / "vision_tokenizer" / "config.json").write_text(json.dumps(OFFICIAL_TOKENIZER))
    config = read_config(tmp_path)
    with torch.device("meta"), no_init_weights():
        parts, frozen = Emu3.trained_parts(config), Emu3VQVAE(config.vq_config)
    trained = sum(p.numel() for part in parts.values() for p in part.parameters())
    whole = trained + sum(p.numel() for p in frozen.parameters())
    assert (trained, whole) == (8_492_011_520, 8_762_751_807)
    assert read_sides(tmp_path, config) == (720, 720)
    standard = Emu3Config()
    for ours, theirs in ((config.text_config, standard.text_config), (config.vq_config, standard.vq_config)):
        left, right = ours.to_dict(), theirs.to_dict()
        for key in ("channel_multiplier", "attn_resolutions"):
            if key in left:
                left[key], right[key] = list(left[key]), list(right[key])
        assert left == right


def test_a_hugging_face_folder_without_sizes_draws_pictures_of_the_released_area(tiny, tmp_path):
    copied(tiny.path, tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert "image_area" not in raw
    (tmp_path / "processor_config.json").unlink()
    config = read_config(tmp_path)
    assert config.image_area == IMAGE_AREA and read_sides(tmp_path, config) == (720, 720)


def test_folders_that_cannot_be_used_are_refused(tiny, tmp_path):
    def written(**changes):
        (tmp_path / "config.json").write_text(json.dumps(OFFICIAL | changes))
        return tmp_path

    with pytest.raises(ModelError, match="model_type 'janus'; an Emu3 folder has 'emu3' or 'Emu3'"):
        read_config(written(model_type="janus"))
    with pytest.raises(ModelError, match="vision_tokenizer. The official vision tokenizer is a separate repository"):
        read_config(written())
    (tmp_path / "vision_tokenizer").mkdir()
    with pytest.raises(ModelError, match="BAAI/Emu3-VisionTokenizer: copy .*model.safetensors to .*vision_tokenizer/model.saf"):
        copied(tiny.path, tmp_path)
        save_file({"norm.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
        Emu3.weights(str(tmp_path))
    vision = tmp_path / "vision_tokenizer" / "config.json"
    vision.write_text(json.dumps({**OFFICIAL_TOKENIZER, "attn_resolutions": [2, 3]}))
    with pytest.raises(ModelError, match=r"attends at widths \[512, 1024\]"):
        read_config(written())
    vision.write_text("{}")
    with pytest.raises(ModelError, match="vision_tokenizer/config.json has no 'codebook_size'"):
        read_config(written())
    with pytest.raises(ModelError, match="has rope_scaling"):
        read_config(written(rope_scaling={"type": "linear"}))
    copied(tiny.path, tmp_path)
    (tmp_path / "processor_config.json").write_text('{"image_size": 18}')
    with pytest.raises(ModelError, match=r"image_size=18 .*multiple of 4"):
        read_sides(tmp_path, read_config(tmp_path))
    (tmp_path / "processor_config.json").unlink()
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="No tokenizer.json in .*from a Hugging Face"):
        tiny._replace(path=tmp_path).processor()


def test_codes_that_are_not_consecutive_tokens_are_refused(tiny, tmp_path):
    swapped = with_replaced(tiny.path, tmp_path, b"visual token 000047", b"visual token 00004x")
    for file in swapped.iterdir():
        file.write_bytes(file.read_bytes().replace(b"visual token 000012", b"visual token 000047"))
    with pytest.raises(ModelError, match="must be consecutive"):
        tiny._replace(path=swapped).processor()
