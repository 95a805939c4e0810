"""Groups, folders, weights and adapters of every family."""

from __future__ import annotations

import json
from importlib import import_module

import pytest
import torch
from peft.tuners.lora import LoraLayer

from megaunigame.errors import ModelError
from megaunigame.models.base import UnifiedModel
from megaunigame.models.weights.settings_files import read_tokenizer
from megaunigame.registry import find
from megaunigame.step.requests import GENERATE, UNDERSTAND
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import (
    ALL_TARGETS,
    CODE_FAMILIES,
    LENGTH,
    PICTURES,
    TARGETS,
    built,
    copied,
    frozen_names,
    generate,
    save_weights,
    understand,
)
from tests.tiny import tiny_config

UNTRAINED = {"blip3o_next": {"dit"}}
"""Groups that a family does not train by default, where they are others than the vision tower."""


def test_a_family_has_the_name_of_its_folder(tiny):
    assert find("models", tiny.family.name, UnifiedModel) is tiny.family


def test_every_parameter_is_in_exactly_one_group(tiny, model):
    family, names = tiny.family, [name for name, _ in model.named_parameters()]
    for name in names:
        owners = [g for g, prefixes in family.groups.items() if name.startswith(tuple(prefixes))]
        assert len(owners) == 1 and family.group_of(name) == owners[0], (name, owners)
    assert {family.group_of(name) for name in names} == set(family.groups)
    with pytest.raises(KeyError, match="other.weight belongs to no group"):
        family.group_of("other.weight")


def test_groups_of_passes_and_defaults_are_groups(tiny):
    family = tiny.family
    assert set(family.trained_by_default) == set(family.groups) - UNTRAINED.get(family.name, {"vision"})
    assert set(family.groups_of_pass(GENERATE, True)) == set(family.groups)
    for name in (UNDERSTAND, GENERATE):
        with_images, without = family.groups_of_pass(name, True), family.groups_of_pass(name, False)
        always = family.reads_target if name == GENERATE else ()
        assert without == [group for group in with_images if group not in family.seeing or group in always]
        assert "lm" in without and set(with_images) <= set(family.groups)


def test_names_are_exactly_those_of_the_built_module(tiny):
    family, path = tiny.family, str(tiny.path)
    model = built(family, path, max_length=LENGTH)
    names, frozen = family.weights(path).names(), frozen_names(family, path)
    assert names == {n for n, _ in model.named_parameters()} == set(model.state_dict())
    assert names | frozen == set(tiny.state)
    assert {name.startswith(family.keys.frozen) for name in frozen} == {True}
    assert not any(name.startswith(family.keys.frozen) for name in names)
    assert all(p.dim() > 0 for p in model.parameters())
    assert family.language_layers(path) == len(model.language_model.layers) == 2
    assert family.trained_positions(path) == model.language_model.config.max_position_embeddings > 0


def test_weights_arrive_unchanged(tiny, model):
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, tiny.state[name]), name
    frozen = model.frozen.module
    for name, tensor in frozen.state_dict().items():
        assert torch.equal(tensor, tiny.state[tiny.family.keys.frozen_root + name]), name
    assert not any(p.requires_grad for p in frozen.parameters()) and not frozen.training


def test_bfloat16_weights_leave_the_rotary_frequencies_in_float32(tiny):
    model = tiny.load(dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    frequencies = {name: b.dtype for name, b in model.named_buffers() if name.endswith("inv_freq")}
    assert frequencies and set(frequencies.values()) == {torch.float32}


def test_a_checkpoint_of_another_model_is_refused(tiny, tmp_path):
    family, state = tiny.family, tiny.state
    copied(tiny.path, tmp_path)
    lost, keys = min(family.weights(str(tiny.path)).names()), family.keys
    head = next((name for name in state if name.endswith("lm_head.weight")), "model.embed_tokens.weight")
    extra = head.replace("weight", "extra")

    def with_state(changed):
        save_weights(family, changed, tmp_path)
        return str(tmp_path)

    with pytest.raises(ModelError, match=f"checkpoint of another model .1 missing: {lost}"):
        family.weights(with_state({k: v for k, v in state.items() if k != lost}))
    with pytest.raises(ModelError, match=f"1 unexpected: {extra}"):
        family.weights(with_state({**state, extra: torch.zeros(2)}))
    vocabulary = len(state[head])
    with pytest.raises(ModelError, match=rf"{head} is \(5, 64\) instead of \({vocabulary}, 64\)"):
        family.weights(with_state({**state, head: torch.zeros(5, 64)}))
    quantized = rf"{head} in .* has numbers of the type I8, .* legal are F64, F32, F16, BF16"
    with pytest.raises(ModelError, match=quantized):
        family.weights(with_state({**state, head: state[head].to(torch.int8)}))
    with pytest.raises(ModelError, match=f"1 keys are not {keys.family}'s, such as other.weight"):
        family.weights(with_state({**state, "other.weight": torch.zeros(2)}))
    with_state({k: v for k, v in state.items() if not (k.startswith(keys.frozen) and "decoder." in k)})
    with pytest.raises(ModelError, match=rf"{family.frozen_name} in .* missing: \S*decoder"):
        family.load(tmp_path)
    part = min(k for k, v in state.items() if k.startswith(keys.frozen) and "decoder." in k and v.is_floating_point())
    with_state({**state, part: state[part].to(torch.int8)})
    with pytest.raises(ModelError, match=rf"{family.frozen_name} in .* has numbers of the type I8"):
        family.load(tmp_path)


def test_a_written_folder_survives_another_round(tiny, tmp_path):
    family, config = tiny.family, tiny.family.configuration(str(tiny.path))
    write_folder = import_module(f"megaunigame.models.{family.name}.folder").write_folder
    write_folder(tmp_path / "again", config, tiny.state, read_tokenizer(tiny.path), **PICTURES.get(family.name, {}))
    family.write_settings(str(tiny.path), tmp_path / "settings")
    written = {file.relative_to(tiny.path) for file in tiny.path.rglob("*.safetensors")}
    assert len(written) == 1 + bool(family.frozen_folder)
    assert all((tmp_path / "again" / file).read_bytes() == (tiny.path / file).read_bytes() for file in written)
    for folder in ("again", "settings"):
        assert family.configuration(str(tmp_path / folder)).to_dict() == config.to_dict()
    settings = {file.name for file in (tmp_path / "settings").iterdir()}
    pictures = {"preprocessor_config.json"} & {file.name for file in tiny.path.iterdir()}
    assert {"config.json", "tokenizer.json", *pictures} <= settings


@pytest.mark.parametrize("tiny", CODE_FAMILIES, indirect=True)
def test_a_width_that_norms_cannot_divide_is_refused(tiny):
    with pytest.raises(ModelError, match="multiple of 32"):
        tiny_config(tiny.family.name, tiny.tokenizer, vq_config={"base_channels": 48})


@pytest.mark.parametrize(
    ("family", "keys"),
    [
        ("janus", ["gen_vision_model.encoder.something.weight", "vision_model.other.weight", "transformer.h.0.weight"]),
        ("openuni", ["lmm.something.weight", "gen_vision_model.decoder.weight", "model.vqmodel.encoder.weight"]),
        (
            "chameleon",
            ["gen_vision_model.encoder.conv_in.weight", "model.text_model.norm.weight", "layers.0.attention.wq.weight"],
        ),
        ("harmon", ["mar.something.weight", "llm.model.layers.weight", "vision_model.encoder.conv_in.weight"]),
        ("show_o", ["gen_vision_model.encoder.conv_in.weight", "model.layers.0.mlp.fc1.weight", "showo.other.weight"]),
        (
            "bagel",
            ["language_model.other.weight", "encoder.layers.0.mlp.fc1.weight", "gen_vision_model.encoder.conv_in.weight"],
        ),
        ("emu3", ["gen_vision_model.encoder.conv_in.weight", "model.aligner.fc1.weight", "language_model.model.norm.weight"]),
        ("blip3o_next", ["model.sana.other.weight", "model.vision_tower.encoder.layers.0.weight", "sana_vae.decoder.weight"]),
        ("emu3_5", ["model.vqmodel.encoder.conv_in.weight", "model.text_model.norm.weight", "text_model.lm_head.weight"]),
    ],
)
def test_unknown_keys_have_no_name(family, keys):
    translate = import_module(f"megaunigame.models.{family}.keys").translate
    assert [translate(key) for key in keys] == [None] * 3


def test_folders_that_cannot_be_used_are_refused(tiny, tmp_path):
    family, path = tiny.family, str(tmp_path)
    with pytest.raises(ModelError, match=f"No config.json in .*Give an? {family.keys.family} folder"):
        family.configuration(path)
    copied(tiny.path, tmp_path)
    with pytest.raises(ModelError, match="No weights in .*model.safetensors"):
        family.weights(path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10")
    with pytest.raises(ModelError, match="cannot be read as a checkpoint"):
        family.weights(path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="No tokenizer.json"):
        built(family, path, max_length=LENGTH)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match=f"model_type 'llama'; an? {family.keys.family} folder has '"):
        family.configuration(path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        family.configuration(path)


def changed(config, name, new):
    """The content of config.json with another value of `name`, wherever it says it."""
    return {
        key: new if key == name else changed(value, name, new) if isinstance(value, dict) else value
        for key, value in config.items()
    }


def test_a_size_that_is_not_a_number_is_refused(tiny, tmp_path):
    copied(tiny.path, tmp_path)
    file = tmp_path / "config.json"
    before = json.loads(file.read_text())
    after = changed(before, "num_hidden_layers", "2")
    assert after != before
    file.write_text(json.dumps(after))
    with pytest.raises(ModelError, match=r"config\.json.*num_hidden_layers"):
        tiny.family.configuration(str(tmp_path))


def test_a_tokenizer_that_is_larger_than_its_model_is_refused(tiny, tmp_path):
    """By one token. Where codes are counted from the tokenizer's length (Show-o), it would be read as a code."""
    copied(tiny.path, tmp_path)
    file, tokenizer = tmp_path / "config.json", read_tokenizer(tmp_path)
    least = max(tokenizer.get_vocab().values()) + 1
    key = "llm_vocab_size" if tiny.family.name == "show_o" else "vocab_size"
    if key == "vocab_size":
        file.write_text(json.dumps(changed(json.loads(file.read_text()), "vocab_size", least)))
    assert built(tiny.family, tmp_path, max_length=LENGTH)
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"has tokens up to {least}; with the {key} of its model, {least - 1} is the last"):
        built(tiny.family, tmp_path, max_length=LENGTH)


def test_settings_that_are_no_objects_are_refused(tiny, tmp_path):
    copied(tiny.path, tmp_path)
    for name in ("processor_config.json", "tokenizer_config.json", "tokenizer.json", "config.json"):
        before = (tmp_path / name).read_text() if (tmp_path / name).is_file() else "{}"
        for content, kind in ("[1]", "list"), ('"x"', "str"), ("null", "NoneType"):
            (tmp_path / name).write_text(content)
            with pytest.raises(ModelError, match=f"{name} holds a {kind}; it must be a JSON object"):
                built(tiny.family, tmp_path, max_length=LENGTH)
        (tmp_path / name).write_bytes(b"\xff\xfe{}")
        with pytest.raises(ModelError, match=f"{name} is not JSON"):
            built(tiny.family, tmp_path, max_length=LENGTH)
        (tmp_path / name).write_text(before)


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ("flash", "legal are sdpa"),
        ("flash_attention_2", "flash_att.*type model.attention=sdpa .*--attention sdpa"),
        ("flash_attention_3", "flash_attention_3 .*type model.attention=sdpa .*--attention sdpa"),
    ],
)
def test_attention_that_cannot_run_is_refused(tiny, attention, message):
    with pytest.raises(ModelError, match=message):
        built(tiny.family, tiny.path, max_length=LENGTH, attention=attention)


def test_the_frozen_tokenizer_is_not_part_of_the_model(tiny):
    model = built(tiny.family, tiny.path, max_length=LENGTH)
    side = model.processor.image_size
    with pytest.raises(RuntimeError, match="load_frozen"):
        model.encode_target(torch.zeros(1, 3, side, side))
    names = set(model.state_dict())
    model.load_frozen(str(tiny.path), torch.device("cpu"))
    assert set(model.state_dict()) == names
    model.requires_grad_(True)
    model.train()
    frozen, plain = model.frozen.module, model.build_frozen()
    assert not any(p.requires_grad for p in frozen.parameters()) and not any(m.training for m in frozen.modules())
    for ours, theirs in zip((*frozen.parameters(), *frozen.buffers()), (*plain.parameters(), *plain.buffers()), strict=True):
        assert ours.dtype == (torch.float32 if theirs.is_floating_point() else theirs.dtype)
    assert len(model.encode_target(torch.zeros(1, 3, side, side))) == 1


@pytest.mark.parametrize("kind", [{}, {"rslora": True}, {"dora": True}], ids=["lora", "rslora", "dora"])
def test_lora_trains_adapters_of_the_language_model_only(model, picture, kind):
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    inputs = understand(model, UnderstandRow([picture(0)], [("what ?", "ball")]))
    with torch.no_grad():
        base = model(inputs).loss_sum
    targets = TARGETS.get(model.name, ALL_TARGETS)
    model.add_lora(rank=4, alpha=8, dropout=0.0, targets=targets, seed=0, **kind)
    scales = {module.scaling["default"] for module in model.modules() if isinstance(module, LoraLayer)}
    assert scales == {8 / 2 if "rslora" in kind else 8 / 4}
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    layers = next(name for name, module in model.named_modules() if module is model.language_model) + ".layers."
    assert len(trained) == 2 * len(targets) * (3 if "dora" in kind else 2)
    assert all("lora_" in n and n.startswith(layers) for n in trained)
    assert {model.group_of(n) for n in trained} == {"lm", *(["lm_gen"] if model.name == "bagel" else [])}
    loss = model(inputs).loss_sum
    torch.testing.assert_close(loss.detach(), base)  # the second matrix starts at zero
    (loss.sum() + model(generate(model, GenerateRow("a cube", picture(0)))).loss_sum.sum()).backward()
    assert all((p.grad is not None) == (n in trained) for n, p in model.named_parameters())
    assert any(p.grad.abs().max() > 0 for n, p in model.named_parameters() if n in trained)
    for name, parameter in model.named_parameters():
        assert name in trained or torch.equal(parameter, before[name.replace(".base_layer", "")])


def test_adapters_start_equal_everywhere_and_leave_the_random_state_alone(tiny):
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = tiny.load()
        expected = torch.get_rng_state()
        model.add_lora(rank=2, alpha=4, dropout=0.0, targets=["q_proj"], seed=0)
        assert torch.equal(torch.get_rng_state(), expected)
        states.append({n: p for n, p in model.named_parameters() if p.requires_grad})
    assert all(torch.equal(p, states[1][n]) for n, p in states[0].items())


def test_unknown_lora_targets_are_refused(model):
    legal = ", ".join(sorted(TARGETS.get(model.name, ALL_TARGETS))[:2])
    with pytest.raises(ModelError, match=f"model.lora.targets: unknown target 'query'.*{legal}"):
        model.add_lora(rank=2, alpha=4, dropout=0.0, targets=["q_proj", "query"], seed=0)
    table = model.linear_layers()
    assert set(table) == set(TARGETS.get(model.name, ALL_TARGETS))
    model.add_lora(rank=2, alpha=4, dropout=0.0, targets=[], seed=0)
    adapted = {name.split(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert len(adapted) == 2 * len(table)
    assert all(any(name.endswith(end) for names in table.values() for end in names) for name in adapted)


def test_a_frozen_tower_and_the_frozen_tokenizer_stay_in_eval_mode(model):
    tower, frozen = model.vision_tower, model.frozen.module
    if tower is not None:
        tower.requires_grad_(False)
    model.train()
    assert model.language_model.training and not any(m.training for m in frozen.modules())
    if tower is not None:
        assert not any(m.training for m in tower.modules())
        tower.requires_grad_(True)
        model.train()
        assert tower.training
    assert not model.eval().language_model.training
