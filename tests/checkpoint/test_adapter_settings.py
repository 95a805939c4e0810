"""`model.adapter`: a folder of adapters that somebody else may have made."""

from __future__ import annotations

import json
import os

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from megaunigame.checkpoint.adapted import AdaptedWeights
from megaunigame.checkpoint.adapter_folder import ADAPTER_SETTINGS, ADAPTER_WEIGHTS, PREFIX, open_adapter, read_lora
from megaunigame.config import LoraConfig
from megaunigame.errors import ConfigError, ModelError
from megaunigame.storage import json_files
from tests.faults.hostile_bytes import CONTROLS, showable
from tests.refusals import refused

FITTING = {"r": 4, "lora_alpha": 8}
OTHER_MATH = {
    **{"alpha_pattern": {"q_proj": 99}, "lora_bias": True, "fan_in_fan_out": True, "layer_replication": [[0, 2]]},
    **{"use_qalora": True, "trainable_token_indices": [1], "modules_to_save": ["lm_head"], "target_parameters": ["w"]},
    **{"alora_invocation_tokens": [1], "use_bdlora": {"nblocks": 2}, "kasa_config": {"x": 1}, "of_a_later_peft": True},
}
CHANGED_BASE = ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "of_a_later_peft")
LORA = LoraConfig(rank=4, alpha=8.0, targets=["q_proj"])


def write_adapter(folder, settings: object = FITTING, layer: str = "q_proj"):
    text = settings if isinstance(settings, bytes) else json.dumps(settings).encode()
    (folder / ADAPTER_SETTINGS).write_bytes(text)
    save_file({f"{PREFIX}model.{layer}.lora_A.weight": torch.zeros(1)}, folder / ADAPTER_WEIGHTS)
    return folder


def refusal(folder) -> str:
    with pytest.raises(ConfigError) as refused:
        open_adapter(str(folder), LORA)
    return str(refused.value)


def test_fitting_adapters_are_opened(tmp_path):
    assert open_adapter(str(write_adapter(tmp_path)), LORA).names() == {"model.q_proj.lora_A.default.weight"}


@pytest.mark.fault(
    "an adapter_config.json that is damaged, too large, or has other types",
    does="refuses it, naming file and value",
    lost="nothing",
)
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        *((content, "is not the settings of adapters") for content in (b"", b"{", b"[1]", b"[" * 100_000, b"\xff\xfe\x00")),
        ({}, "has r=None, which must be a whole number, 1 or more"),
        ({**FITTING, "r": "4"}, "has r='4', which must be a whole number"),
        ({**FITTING, "r": 0}, "has r=0, which must be a whole number, 1 or more"),
        ({**FITTING, "r": 4.5}, "has r=4.5, which"),
        ({**FITTING, "r": True}, "has r=True, which"),
        ({**FITTING, "lora_alpha": [8]}, r"has lora_alpha=\[8\], which"),
        ({**FITTING, "lora_alpha": 10**400}, "has lora_alpha=1000"),
        ({**FITTING, "use_dora": 2}, "has use_dora=2, which must be true or false"),
        ({**FITTING, "bias": "\x1b[2Jall"}, r"has bias='\\x1b\[2Jall'; adapters are trained"),
        ({**FITTING, "rank_pattern": {"a": 1}}, r"has rank_pattern=\{'a': 1\}; adapters"),
        ({**FITTING, "peft_type": "ADALORA"}, "has peft_type='ADALORA'; adapters are trained and merged here with LORA only"),
        *(({**FITTING, name: value}, f"has {name}=") for name, value in OTHER_MATH.items()),
        *(({**FITTING, "init_lora_weights": start}, f"has init_lora_weights='{start}': PEFT may") for start in CHANGED_BASE),
    ],
)
def test_settings_of_another_form_are_refused(tmp_path, settings, words):
    with pytest.raises(ConfigError, match=f"{ADAPTER_SETTINGS} {words}"):
        open_adapter(str(write_adapter(tmp_path, settings)), LORA)


def test_settings_that_are_too_large_or_no_file(tmp_path, monkeypatch):
    write_adapter(tmp_path, {**FITTING, "x": "y" * 100})
    monkeypatch.setattr(json_files, "LARGEST", 100)
    assert "bytes, more than 100" in refusal(tmp_path)
    (tmp_path / ADAPTER_SETTINGS).unlink()
    os.mkfifo(tmp_path / ADAPTER_SETTINGS)
    assert f"has no {ADAPTER_SETTINGS}" in refusal(tmp_path)
    with pytest.raises(ConfigError, match="not a file"):
        json_files.read_object(tmp_path / ADAPTER_SETTINGS, "x", ConfigError, "y")


@pytest.mark.parametrize("layer", [*CONTROLS, "x]' ; touch y ; '", "$(id)"])
def test_names_of_layers_are_not_put_into_a_command(tmp_path, layer):
    said = refusal(write_adapter(tmp_path, layer=layer.replace(".", "")))
    assert showable(said) and "which is not a layer of a model" in said and "Type" not in said


def test_settings_as_peft_writes_them_are_read(tmp_path):
    """All of its fields, those with a value too that do not change the merged weights."""
    write_adapter(tmp_path)
    fields = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "exclude_modules": ["k_proj"], "lora_dropout": 0.1}
    for start in (True, False, "gaussian", "orthogonal"):
        peft.LoraConfig(**fields, init_lora_weights=start, use_rslora=True).save_pretrained(str(tmp_path))
        assert read_lora(tmp_path) == LoraConfig(rank=4, alpha=8.0, rslora=True)


ODD_TENSORS = ("lora_B.bias", "lora_embedding_A", "lora_ga.weight", "modules_to_save.weight", "lora_C.weight")


@pytest.mark.parametrize("part", ODD_TENSORS)
def test_a_tensor_that_is_not_merged_is_refused(tmp_path, part):
    write_adapter(tmp_path)
    tensors = load_file(tmp_path / ADAPTER_WEIGHTS)
    save_file(tensors | {f"{PREFIX}model.q_proj.{part}": torch.ones(1)}, tmp_path / ADAPTER_WEIGHTS)
    with refused("has 1 tensors besides A, B and magnitudes", f"'{PREFIX}model.q_proj.{part}'", error=ModelError):
        open_adapter(str(tmp_path), LORA)


class Base:
    """One weight (3, 2), whose first row is zero (implements `Weights`)."""

    def names(self) -> set[str]:
        return {"model.q_proj.weight", "model.norm.weight"}

    def shape(self, name: str) -> torch.Size:
        return self.read(name).shape

    def read(self, name: str) -> torch.Tensor:
        return torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]]) if "q_proj" in name else torch.ones(3)

    def pieces(self, name: str) -> None:
        return None


def adapted(folder, settings: dict, **parts: torch.Tensor) -> AdaptedWeights:
    folder.mkdir(exist_ok=True)
    (folder / ADAPTER_SETTINGS).write_text(json.dumps({"r": 1, "lora_alpha": 2, **settings}))
    save_file({f"{PREFIX}model.q_proj.lora_{part}": value for part, value in parts.items()}, folder / ADAPTER_WEIGHTS)
    return AdaptedWeights(Base(), folder)


LOW, HIGH = {"A.weight": torch.tensor([[1.0, 1.0]])}, {"B.weight": torch.tensor([[1.0], [0.0], [0.0]])}
LENGTHS = {"magnitude_vector": torch.ones(3)}


def test_merged_by_definition(tmp_path):
    plain = adapted(tmp_path, {}, **LOW, **HIGH)
    assert plain.read("model.q_proj.weight").tolist() == [[2, 2], [3, 4], [1, 0]]
    assert plain.read("model.norm.weight").tolist() == [1, 1, 1]
    dora = adapted(tmp_path, {"use_dora": True}, **LOW, **HIGH, **LENGTHS).read("model.q_proj.weight")
    torch.testing.assert_close(dora, torch.tensor([[0.5**0.5, 0.5**0.5], [0.6, 0.8], [1.0, 0.0]]))


def test_a_row_of_zeros_has_no_direction(tmp_path):
    weights = adapted(tmp_path, {"use_dora": True}, **LOW, **{"B.weight": torch.zeros(3, 1)}, **LENGTHS)
    with refused("'model.q_proj.weight' has 1 row(s) of zeros", "would be NaN", error=ModelError):
        weights.read("model.q_proj.weight")


@pytest.mark.parametrize(
    ("settings", "parts", "words"),
    [
        ({}, LOW, "has no tensor 'model.q_proj.lora_B"),
        ({}, HIGH, "has no tensor 'model.q_proj.lora_A"),
        ({"use_dora": True}, LOW | HIGH, "has no tensor 'model.q_proj.lora_magnitude_vector"),
        ({}, LOW | HIGH | LENGTHS, "has without use_dora the tensor 'model.q_proj.lora_magnitude_vector"),
        ({"r": 2}, LOW | HIGH, "has shape (1, 2), not (2, 2)"),
        ({}, LOW | {"B.weight": torch.ones(4, 1)}, "are for a weight of (4, 2); that of the base is (3, 2)"),
        ({}, {"A.weight": torch.ones(1), "B.weight": torch.ones(3)}, "are for a weight of (3,)"),
        ({"use_dora": True}, LOW | HIGH | {"magnitude_vector": torch.ones(2)}, "has shape (2,), not (3,)"),
    ],
)
def test_adapters_that_are_not_whole_are_refused(tmp_path, settings, parts, words):
    with refused(words, error=ModelError):
        adapted(tmp_path, settings, **parts)
