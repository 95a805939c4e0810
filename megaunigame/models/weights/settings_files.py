"""The small files of a model folder other than weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from megaunigame.errors import ModelError


def read_settings(file: Path) -> dict[str, Any]:
    """An optional settings file; absent means every setting has its default. Raises ModelError when it is not JSON."""
    return _read_json(file) if file.is_file() else {}


def read_config_file(file: Path, hint: str) -> dict[str, Any]:
    """A config.json. Raises ModelError, with the hint what to give instead, when there is none or it is not JSON."""
    if not file.is_file():
        raise ModelError(f"No config.json in {file.parent}. {hint}")
    return _read_json(file)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ModelError(f"{file} is not JSON: {error}.") from error


def write_settings_file(file: Path, settings: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(settings, indent=2) + "\n")


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder. Raises ModelError when it has none."""
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"No tokenizer.json in {folder}. Copy the tokenizer files of the model there.")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    # A long text is cut to the recipe's max_length later: transformers need not warn about its length.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def copy_settings(folder: Path, out: Path) -> None:
    """Copy what is neither weights nor an index of weights; `out` is created."""
    out.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.suffix in (".json", ".jinja", ".txt", ".model") and not file.name.endswith(".index.json"):
            shutil.copy(file, out / file.name)
