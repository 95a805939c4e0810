"""Folders of Chameleon: Hugging Face ones with and without decoder, original releases of any number of files, refusals."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import ChameleonForConditionalGeneration

from megaunigame.checkpoint.export import in_transformers_layout
from megaunigame.errors import ModelError
from megaunigame.models.chameleon import Chameleon
from megaunigame.models.chameleon.configuration import read_config, read_sides
from megaunigame.models.chameleon.release import ReleaseFolder, release_config
from megaunigame.models.weights.settings_files import read_tokenizer
from megaunigame.models.weights.tensor_files import save_state
from tests.models.shared import copied, outputs
from tests.tiny import write_tiny

FAMILY = "chameleon"
VQ = "model.vqmodel."


def vqgan_state(state):
    """The image tokenizer under the keys of the release, with what else is in its checkpoint."""
    images = {name.removeprefix(VQ): value for name, value in state.items() if name.startswith(VQ)}
    return {**images, "loss.discriminator.weight": torch.zeros(2)}


def save_vqgan(state, file):
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": vqgan_state(state), "epoch": 3}, file)


def without_decoder(state):
    return {name: value for name, value in state.items() if not name.startswith(VQ + "decoder.")}


def interleaved(weight, heads):
    """Rows of heads as the release has them: the two numbers that rotate together next to each other, one row at a time."""
    size = len(weight) // heads
    rows = []
    for head in range(heads):
        for pair in range(size // 2):
            rows += [weight[head * size + pair], weight[head * size + pair + size // 2]]
    return torch.stack(rows)


def released_states(state, config, files):
    """The language model in `files` parts, spelled out independently of the reader."""
    queries, keys = config.num_attention_heads, config.num_key_value_heads
    shards = [{} for _ in range(files)]

    def parts(name, weight, along):
        for shard, part in zip(shards, weight.chunk(files, along), strict=True):
            shard[name] = part.clone()

    def same(name, vector):
        for shard in shards:
            shard[name] = vector.clone()

    parts("tok_embeddings.weight", state["model.embed_tokens.weight"], 1)
    parts("output.weight", state["lm_head.weight"], 0)
    same("norm.weight", state["model.norm.weight"])
    for layer in range(config.num_hidden_layers):
        ours, theirs = f"model.layers.{layer}.", f"layers.{layer}."
        parts(theirs + "attention.wq.weight", interleaved(state[ours + "self_attn.q_proj.weight"], queries), 0)
        parts(theirs + "attention.wk.weight", interleaved(state[ours + "self_attn.k_proj.weight"], keys), 0)
        parts(theirs + "attention.wv.weight", state[ours + "self_attn.v_proj.weight"], 0)
        parts(theirs + "attention.wo.weight", state[ours + "self_attn.o_proj.weight"], 1)
        parts(theirs + "feed_forward.w1.weight", state[ours + "mlp.gate_proj.weight"], 0)
        parts(theirs + "feed_forward.w2.weight", state[ours + "mlp.down_proj.weight"], 1)
        parts(theirs + "feed_forward.w3.weight", state[ours + "mlp.up_proj.weight"], 0)
        same(theirs + "attention_norm.weight", state[ours + "input_layernorm.weight"])
        same(theirs + "ffn_norm.weight", state[ours + "post_attention_layernorm.weight"])
        for letter in "qk":
            for kind in ("weight", "bias"):
                heads = state[f"{ours}self_attn.{letter}_norm.{kind}"]
                for shard, head in zip(shards, heads[:: len(heads) // files], strict=True):
                    shard[f"{theirs}attention.{letter}_normalization.{kind}"] = interleaved(head, 1)
    return shards


def release(home, tiny, files, state=None):
    """models/7b and tokenizer of a release of the tiny model; returns the former."""
    folder, config, vq = home / "models" / "7b", tiny.config, tiny.config.vq_config
    folder.mkdir(parents=True)
    state = tiny.state if state is None else state
    for number, shard in enumerate(released_states(state, config, files)):
        torch.save(shard, folder / f"consolidated.{number:02d}.pth")
    model = {
        **{"dim": config.hidden_size, "n_layers": config.num_hidden_layers, "n_heads": config.num_attention_heads},
        **{"n_kv_heads": config.num_key_value_heads, "norm_eps": config.rms_norm_eps, "swin_norm": config.swin_norm},
        "rope_theta": config.rope_parameters["rope_theta"],
    }
    (folder / "params.json").write_text(json.dumps({"model": model, "model_parallel_size": 7}))
    (folder / "consolidate_params.json").write_text(json.dumps({"model_parallel_size": files}))
    save_vqgan(state, home / "tokenizer" / "vqgan.ckpt")
    ddconfig = {
        **{"double_z": False, "z_channels": vq.latent_channels, "resolution": vq.resolution, "in_channels": 3, "out_ch": 3},
        **{"ch": vq.base_channels, "ch_mult": vq.channel_multiplier, "num_res_blocks": vq.num_res_blocks},
        "attn_resolutions": vq.attn_resolutions,
    }
    params = {"embed_dim": vq.embed_dim, "n_embed": vq.num_embeddings, "ddconfig": ddconfig, "ckpt_path": "x", "lossconfig": {}}
    (home / "tokenizer" / "vqgan.yaml").write_text(yaml.safe_dump({"model": {"params": params}}))
    tiny.tokenizer.backend_tokenizer.save(str(home / "tokenizer" / "text_tokenizer.json"))
    text = (home / "tokenizer" / "text_tokenizer.json").read_text()
    assert text.count('"<image>"') >= 2
    (home / "tokenizer" / "text_tokenizer.json").write_text(text.replace('"<image>"', '"<reserved08707>"'))
    return folder


def shared_norms(state, files):
    """The state with norms of queries and keys that the heads of a file share, and which are not trivial."""
    torch.manual_seed(3)
    new = dict(state)
    for name, value in state.items():
        if "q_norm" in name or "k_norm" in name:
            own = torch.rand(files, value.shape[1]) + ("weight" in name)
            new[name] = own.repeat_interleave(len(value) // files, 0)
        elif name.endswith("norm.weight") and "vqmodel" not in name:
            new[name] = torch.rand_like(value) + 0.5
    return new


@pytest.fixture
def sixteen(tiny, tmp_path):
    """A model of one picture size, its norms not trivial: a release says no sizes of pictures."""
    make = {}

    def write(files, **changes):
        if files not in make:
            plain = write_tiny(FAMILY, tmp_path / f"hf{files}", ["what is it ?"], **changes)
            state = shared_norms(plain.state, files)
            save_state(plain.path, state)
            make[files] = plain._replace(state=state)
        return make[files]

    return write


@pytest.mark.parametrize(("files", "changes"), [(1, {}), (2, {"swin_norm": True})])
def test_a_release_gives_the_same_model(sixteen, tmp_path, picture, files, changes):
    hf = sixteen(files, **changes)
    folder = release(tmp_path / "release", hf, files, hf.state)
    theirs, ours = hf._replace(path=folder).load(), hf.load()
    for name, parameter in theirs.named_parameters():
        assert torch.equal(parameter, hf.state[name]), name
    assert torch.equal(outputs(theirs, picture), outputs(ours, picture))
    weights = Chameleon.weights(str(folder))
    assert {name: weights.shape(name) for name in weights.names()} == {name: hf.state[name].shape for name in weights.names()}
    config = read_config(folder)
    expected = hf.config.to_dict() | {"max_position_embeddings": 4096, "model_parallel_size": files, "architectures": None}
    found = config.to_dict() | {"architectures": None}
    assert found == expected


def test_a_release_is_exported_as_a_hugging_face_folder(sixteen, tmp_path, picture):
    hf = sixteen(1)
    folder = release(tmp_path / "release", hf, 1, hf.state)
    out = tmp_path / "out"
    Chameleon.write_settings(str(folder), out)
    assert in_transformers_layout(Chameleon, out) and not in_transformers_layout(Chameleon, folder)  # which has no config.json
    both = [Chameleon.weights(str(folder)), Chameleon.frozen_weights(str(folder))]
    save_file({n: w.read(n).contiguous() for w in both for n in w.names()}, out / "model.safetensors")
    assert torch.equal(outputs(hf._replace(path=out).load(), picture), outputs(hf.load(), picture))
    assert read_sides(out, read_config(out)) == (16, 16) and "<image>" in read_tokenizer(out).get_vocab()
    theirs = ChameleonForConditionalGeneration.from_pretrained(out).state_dict()
    assert all(torch.equal(value, hf.state[name]) for name, value in theirs.items()) and len(theirs) > 60
    assert Chameleon.differences(str(out)) == []


def test_a_long_rotary_base_means_long_rows(sixteen, tmp_path):
    folder = release(tmp_path / "release", sixteen(1), 1)
    params = json.loads((folder / "params.json").read_text())
    params["model"]["rope_theta"] = 50000.0
    (folder / "params.json").write_text(json.dumps(params))
    assert release_config(ReleaseFolder(folder)).max_position_embeddings == 16384


def test_the_tokenizer_of_a_release_may_lie_in_its_folder(sixteen, tmp_path, picture):
    hf = sixteen(1)
    folder = release(tmp_path / "release", hf, 1, hf.state)
    shutil.move(tmp_path / "release" / "tokenizer", folder / "tokenizer")
    assert torch.equal(outputs(hf._replace(path=folder).load(), picture), outputs(hf.load(), picture))


def test_a_release_that_is_not_whole_is_refused(sixteen, tmp_path):
    folder = release(tmp_path / "release", sixteen(2), 2)
    (folder / "consolidated.01.pth").rename(tmp_path / "aside.pth")
    with pytest.raises(ModelError, match="tensors have other shapes"):
        Chameleon.weights(str(folder))
    torch.save({"norm.weight": torch.zeros(64)}, folder / "consolidated.01.pth")
    with pytest.raises(ModelError, match=r"consolidated.01.pth has other keys than .*consolidated.00.pth"):
        Chameleon.weights(str(folder))
    params = json.loads((folder / "params.json").read_text())
    del params["model"]["n_layers"]
    (folder / "consolidated.01.pth").unlink()
    (folder / "params.json").write_text(json.dumps(params))
    with pytest.raises(ModelError, match="has no 'n_layers'"):
        read_config(folder)
    (folder / "consolidated.00.pth").unlink()
    with pytest.raises(ModelError, match="No weights in .*consolidated.00.pth"):
        read_config(folder)
    (tmp_path / "release" / "tokenizer" / "vqgan.yaml").unlink()
    with pytest.raises(ModelError, match="vqgan.yaml is missing. The release has a folder tokenizer next to models"):
        read_config(folder)


PARAMS, VQGAN = "models/7b/params.json", "tokenizer/vqgan.yaml"


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (PARAMS, "{", "[", "params.json is not JSON"),
        (PARAMS, None, b"\xff\xfe", "params.json is not JSON"),
        (PARAMS, None, b"[1]", "params.json holds a list; it must be a JSON object"),
        (PARAMS, None, b'{"model": [2]}', r"params.json holds model=\[2\] where a release has settings by name"),
        (
            PARAMS,
            '"n_heads": 4',
            '"n_heads": "4"',
            "params.json has model.n_heads='4'; it must be a whole number greater than 0",
        ),
        (PARAMS, '"n_heads": 4', '"n_heads": 0', "params.json has model.n_heads=0; it must be a whole number"),
        (PARAMS, '"n_heads": 4', '"n_heads": true', "params.json has model.n_heads=True; it must be a whole number"),
        (PARAMS, '"swin_norm": false', '"swin_norm": 1', "params.json has model.swin_norm=1; it must be true or false"),
        (
            PARAMS,
            '"model_parallel_size": 7',
            '"model_parallel_size": 1.5',
            "params.json has model_parallel_size=1.5; it must be",
        ),
        (VQGAN, None, b"model: [", "vqgan.yaml is not YAML"),
        (VQGAN, None, b"\xff\xfe", "vqgan.yaml is not YAML"),
        (VQGAN, None, b"text", "vqgan.yaml holds a str where a release has settings by name"),
        (VQGAN, None, b"model: 3", "vqgan.yaml holds model=3 where"),
        (VQGAN, None, b"model: {params: {}}", "vqgan.yaml holds model.params.ddconfig=None where"),
        (
            VQGAN,
            "ch: 32",
            "ch: wide",
            "vqgan.yaml has model.params.ddconfig.ch='wide'; it must be a whole number greater than 0",
        ),
        (VQGAN, "n_embed: ", "n_embed: -", "vqgan.yaml has model.params.n_embed=-.*; it must be a whole number greater than 0"),
        (VQGAN, "ch_mult:", "ch_mult: 4\n      before:", "ddconfig.ch_mult=4; it must be a list of whole numbers"),
    ],
)
def test_broken_settings_of_a_release_are_named(sixteen, tmp_path, file, old, new, message):
    folder = release(tmp_path / "release", sixteen(1), 1)
    broken = tmp_path / "release" / file
    if old is None:
        broken.write_bytes(new)
    else:
        assert old in broken.read_text()
        broken.write_text(broken.read_text().replace(old, new, 1))
    with pytest.raises(ModelError, match=message):
        read_config(folder)


def test_settings_of_the_model_come_first(sixteen, tmp_path):
    """Of two files that contradict each other."""
    folder = release(tmp_path / "release", sixteen(1), 1)
    (folder / "consolidate_params.json").write_text(json.dumps({"model_parallel_size": 1, "n_heads": 2, "n_kv_heads": 2}))
    assert ReleaseFolder(folder).heads[0] == 4


def test_settings_that_a_release_may_leave_out(sixteen, tmp_path):
    folder = release(tmp_path / "release", sixteen(1), 1)
    whole = json.loads((folder / "params.json").read_text())
    whole["model"] |= {"n_kv_heads": None, "rope_theta": None}
    (folder / "params.json").write_text(json.dumps(whole))
    assert ReleaseFolder(folder).heads == (4, 4)
    config = release_config(ReleaseFolder(folder))
    assert (config.num_key_value_heads, config.rope_parameters["rope_theta"]) == (4, 10000.0)


def test_a_text_tokenizer_that_cannot_be_read_is_named(sixteen, tmp_path):
    folder = release(tmp_path / "release", sixteen(1), 1)
    (tmp_path / "release" / "tokenizer" / "text_tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"text_tokenizer.json is not a tokenizer: .*Copy it again"):
        Chameleon.open_processor(str(folder), max_length=100)


def test_what_no_output_needs_is_left_out(tiny, tmp_path):
    unused = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8), "loss.logvar": torch.zeros(1)}
    save_state(copied(tiny.path, tmp_path), {**tiny.state, "rope.freqs": torch.ones(8), **unused})
    assert Chameleon.weights(str(tmp_path)).names() == Chameleon.weights(str(tiny.path)).names()


def test_unknown_keys_of_a_release_are_named(sixteen, tmp_path):
    folder = release(tmp_path / "release", sixteen(1), 1)
    shard = torch.load(folder / "consolidated.00.pth")
    torch.save({**shard, "layers.0.attention.wx.weight": torch.zeros(2)}, folder / "consolidated.00.pth")
    with pytest.raises(ModelError, match="1 keys are not Chameleon's, such as layers.0.attention.wx.weight"):
        Chameleon.weights(str(folder))


def test_a_conversion_gets_its_decoder_from_the_release(tiny, model, tmp_path, picture):
    folder = copied(tiny.path, tmp_path / "hf")
    kept = without_decoder(tiny.state)
    # A conversion in bfloat16 has a rounded encoder: the image tokenizer of the release goes before it.
    rounded = {name: value.bfloat16() if name.startswith(VQ) else value for name, value in kept.items()}
    save_state(folder, rounded)
    for use in (lambda: Chameleon.weights(str(folder)), lambda: tiny._replace(path=folder).load()):
        with pytest.raises(
            ModelError, match=r"image tokenizer in .*missing: decoder.*Copy tokenizer/vqgan.ckpt .*hf/tokenizer"
        ):
            use()
    save_vqgan(tiny.state, folder / "tokenizer" / "vqgan.ckpt")
    ours = tiny._replace(path=folder).load()
    assert torch.equal(outputs(ours, picture), outputs(model, picture))
    frozen = Chameleon.frozen_weights(str(folder))
    written = {name: frozen.read(name) for name in frozen.names()}
    expected = {name: value for name, value in tiny.state.items() if name.startswith(VQ)}
    assert written.keys() == expected.keys() and all(torch.equal(written[name], value) for name, value in expected.items())


def test_keys_and_bytes_survive_a_round(tiny, tmp_path):
    both = [Chameleon.weights(str(tiny.path)), Chameleon.frozen_weights(str(tiny.path))]
    save_state(tmp_path, {name: each.read(name) for each in both for name in each.names()})
    assert (tmp_path / "model.safetensors").read_bytes() == (tiny.path / "model.safetensors").read_bytes()
    assert load_file(tmp_path / "model.safetensors").keys() == tiny.state.keys()


def test_transformers_reads_the_folder(tiny):
    theirs = ChameleonForConditionalGeneration.from_pretrained(tiny.path).state_dict()
    assert theirs.keys() == without_decoder(tiny.state).keys()
    assert all(torch.equal(value, tiny.state[name]) for name, value in theirs.items())


def test_pictures_are_as_large_as_the_resolution_says(tiny, tmp_path):
    copied(tiny.path, tmp_path)
    (tmp_path / "processor_config.json").unlink()
    assert read_sides(tmp_path, read_config(tmp_path)) == (16, 16)


@pytest.mark.parametrize(("changes", "named"), [({"double_latent": True}, "double_latent=True"), ({"attn_type": "no"}, "'no'")])
def test_other_layers_of_the_image_tokenizer_are_refused(tiny, tmp_path, changes, named):
    copied(tiny.path, tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw["vq_config"] |= changes
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelError, match=named):
        read_config(tmp_path)
