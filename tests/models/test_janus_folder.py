"""Model folders of Janus: both spellings of the keys, all file layouts, the official configuration."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import JanusForConditionalGeneration
from transformers.initialization import no_init_weights

from megaunigame.errors import ModelError
from megaunigame.models.janus import Janus
from megaunigame.models.janus.configuration import codes_per_image, from_official, read_config, visual_tokens
from megaunigame.models.janus.folder import train_tokenizer
from tests.models.shared import copied, outputs, same_logits
from tests.tiny import tiny_config

FAMILY = "janus"

OFFICIAL_7B = {
    "model_type": "multi_modality",
    "aligner_config": {"params": {"depth": 2, "input_dim": 1024, "n_embed": 4096, "projector_type": "mlp_gelu"}},
    "gen_aligner_config": {"params": {"depth": 2, "input_dim": 8, "n_embed": 4096, "projector_type": "mlp_gelu"}},
    "gen_head_config": {"params": {"image_token_embed": 4096, "image_token_size": 16384, "n_embed": 4096}},
    "gen_vision_config": {"params": {"image_token_size": 16384, "n_embed": 8}},
    "vision_config": {
        "params": {"image_size": 384, "model_name": "siglip_large_patch16_384", "select_feature": "same", "select_layer": -1}
    },
    "language_config": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 30, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 102400, "max_position_embeddings": 16384, "model_type": "llama",
        "torch_dtype": "bfloat16", "_attn_implementation": "flash_attention_2",
    },
}  # fmt: skip


def official_state(state):
    """Hugging Face names -> the official keys of the release, spelled out independently of the reader."""
    fused: dict[str, dict[str, torch.Tensor]] = {}
    official = {}
    for name, tensor in state.items():
        tokenizer = name.startswith("model.vqmodel.")
        key = name.replace("model.vqmodel.", "gen_vision_model.").removeprefix("model.")
        if name.startswith("model.language_model."):
            key = name.replace("model.language_model.", "language_model.model.")
        elif name == "lm_head.weight":
            key = "language_model.lm_head.weight"
        elif name.startswith("model.generation_embeddings"):
            key = "gen_embed.weight"
        for old, new in (
            ("vision_model.embeddings.patch_embedding", "vision_model.vision_tower.patch_embed.proj"),
            ("vision_model.post_layernorm", "vision_model.vision_tower.norm"),
            ("vision_model.encoder.layers", "vision_model.vision_tower.blocks"),
            ("layer_norm", "norm"),
            ("self_attn.projection_layer", "attn.proj"),
            ("generation_aligner", "gen_aligner"),
            ("aligner.fc1", "aligner.layers.0"),
            ("aligner.hidden_layers.0", "aligner.layers.2"),
            ("generation_head.proj_out", "gen_head.output_mlp_projector"),
            ("generation_head", "gen_head"),
        ):
            if not tokenizer and "language_model" not in key:
                key = key.replace(old, new)
        if tokenizer:
            key = key.replace(".block.", ".res.").replace("encoder.down.", "encoder.conv_blocks.")
            key = key.replace("decoder.up.", "decoder.conv_blocks.")
            for old, new in (("block_1", "0"), ("attn_1", "1"), ("block_2", "2")):
                key = key.replace(f"mid.{old}", f"mid.{new}")
        if "position_embedding" in key:
            key, tensor = "vision_model.vision_tower.pos_embed", tensor[None]
        if "vision_tower" in key and "_proj." in key:
            where, _, kind = key.rpartition(".")
            where, letter = where.rsplit(".", 1)
            fused.setdefault(f"{where.replace('self_attn', 'attn')}.qkv.{kind}", {})[letter[0]] = tensor
            continue
        official[key] = tensor
    official |= {key: torch.cat([parts[letter] for letter in "qkv"]) for key, parts in fused.items()}
    official["vision_model.vision_tower.attn_pool.latent"] = torch.zeros(1, 1, 32)
    official["gen_vision_model.quantize.codebook_used"] = torch.zeros(65536)
    official["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    return official


def test_official_keys_give_the_same_model(tiny, model, tmp_path, picture):
    official = {k: v.contiguous() for k, v in official_state(tiny.state).items()}
    save_file(official, copied(tiny.path, tmp_path) / "model.safetensors")
    assert torch.equal(outputs(tiny._replace(path=tmp_path).load(), picture), outputs(model, picture))


@pytest.mark.parametrize("layout", ["sharded safetensors", "bin", "sharded bin"])
def test_every_file_layout_is_read(tiny, tmp_path, layout):
    copied(tiny.path, tmp_path)
    official = {k: v.clone().contiguous() for k, v in official_state(tiny.state).items()}
    keys = sorted(official)
    suffix, write = (".bin", torch.save) if "bin" in layout else (".safetensors", save_file)
    stem = "pytorch_model" if "bin" in layout else "model"
    if "sharded" in layout:
        shards = {f"{stem}-{i}-of-3{suffix}": keys[i::3] for i in range(3)}
        for name, part in shards.items():
            write({k: official[k] for k in part}, tmp_path / name)
        index = {"weight_map": {k: name for name, part in shards.items() for k in part}}
        (tmp_path / f"{stem}{suffix}.index.json").write_text(json.dumps(index))
    else:
        write(official, tmp_path / f"{stem}{suffix}")
    model = Janus.load(tmp_path)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, tiny.state[name]), name


def test_transformers_reads_the_folder(tiny, model, picture):
    theirs = JanusForConditionalGeneration.from_pretrained(tiny.path).eval()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, tiny.state[name]), name
    same_logits(model, theirs, picture)
    codes = torch.arange(16).view(1, 16)
    with torch.no_grad():
        decoded = theirs.decode_image_tokens(codes).permute(0, 3, 1, 2)
    torch.testing.assert_close(model.image_tokenizer.decode_codes(codes), decoded, rtol=1e-5, atol=1e-5)


def test_the_official_configuration_gives_the_released_sizes(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(OFFICIAL_7B))
    config = read_config(tmp_path)
    with torch.device("meta"), no_init_weights():
        model = JanusForConditionalGeneration(config)
    assert sum(p.numel() for p in model.parameters()) == 7_407_773_323
    assert visual_tokens(config) == codes_per_image(config) == 576
    assert config.text_config.pad_token_id is None


def test_unknown_towers_and_incomplete_official_configurations_are_refused(tmp_path):
    other = {**OFFICIAL_7B, "vision_config": {"params": {"image_size": 384, "model_name": "clip"}}}
    with pytest.raises(ModelError, match="'clip'; known towers: siglip_large_patch16_384"):
        from_official(other, tmp_path)
    with pytest.raises(ModelError, match="has no 'gen_head_config'"):
        from_official({k: v for k, v in OFFICIAL_7B.items() if k != "gen_head_config"}, tmp_path)


def test_small_models_with_unequal_grids_are_refused(tiny):
    with pytest.raises(ModelError, match="Both grids must be equal"):
        tiny_config("janus", tiny.tokenizer, vision_config={"image_size": 64, "patch_size": 16})
    with pytest.raises(ModelError, match="too small"):
        train_tokenizer(["a"], 100)
