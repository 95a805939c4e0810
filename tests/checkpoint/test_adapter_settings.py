"""`model.adapter`: a folder of adapters that somebody else may have made."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from megaunigame.checkpoint.starting import ADAPTER_SETTINGS, ADAPTER_WEIGHTS, PREFIX, open_adapter
from megaunigame.config import LoraConfig
from megaunigame.errors import ConfigError
from megaunigame.storage import json_files
from tests.faults.hostile_bytes import CONTROLS, showable

FITTING = {"r": 4, "lora_alpha": 8}
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
        ({}, "has r=None, which must be a number"),
        ({**FITTING, "r": "4"}, "has r='4', which must be a number"),
        ({**FITTING, "r": True}, "has r=True, which"),
        ({**FITTING, "lora_alpha": [8]}, r"has lora_alpha=\[8\], which"),
        ({**FITTING, "bias": "\x1b[2Jall"}, r"has bias='\\x1b\[2Jall'; adapters are trained"),
        ({**FITTING, "rank_pattern": {"a": 1}}, r"has rank_pattern=\{'a': 1\}; adapters"),
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
