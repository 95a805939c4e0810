"""The small files of a model folder other than weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from megaunigame.errors import ModelError

NOTES = ("transformers_version", "_from_model_config")
MODEL_SETTINGS = ("config.json", "generation_config.json")
"""What a model reads and a processor does not."""


def read_settings(file: Path) -> dict[str, Any]:
    """An optional settings file; absent means every setting has its default. Raises ModelError when it is not JSON."""
    return _read_json(file) if file.is_file() else {}


def read_system_prompt(folder: Path, default: str = "") -> str:
    """Of processor_config.json; `default` where it has none."""
    return read_settings(folder / "processor_config.json").get("system_prompt", default)  # type: ignore[no-any-return]


def read_config_file(file: Path, hint: str) -> dict[str, Any]:
    """A config.json. Raises ModelError, with the hint what to give instead, when there is none or it is not JSON."""
    if not file.is_file():
        raise ModelError(f"No config.json in {file.parent}. {hint}")
    return _read_json(file)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{file} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} holds a {type(content).__name__}; it must be a JSON object.")
    return content


def write_settings_file(file: Path, settings: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def read_tokenizer(folder: Path, hint: str = "Copy the tokenizer files of the model there.") -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder. Raises ModelError, with the hint where it is published, when it has none."""
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"No tokenizer.json in {folder}. {hint}")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        read_settings(folder / name)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    # A long text is cut to the recipe's max_length later: transformers need not warn about its length.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def named_ids(source: PreTrainedTokenizerFast | PreTrainedConfig) -> dict[str, int | None]:
    """First, last and padding token of a tokenizer or a configuration, as configurations name them."""
    return {name: getattr(source, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def read_generation_settings(folder: Path) -> dict[str, Any]:
    """generation_config.json without what transformers notes about itself in it."""
    settings = read_settings(folder / "generation_config.json")
    return {name: value for name, value in settings.items() if name not in NOTES}


def copy_settings(folder: Path, out: Path, without: Collection[str] = ()) -> None:
    """Copy what is neither weights, nor an index of weights, nor of an adapter, nor named in `without`; `out` is created."""
    out.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        is_setting = file.suffix in (".json", ".jinja", ".txt", ".model") and not file.name.endswith(".index.json")
        if is_setting and not file.name.startswith("adapter_") and file.name not in without:
            shutil.copyfile(file, out / file.name)
