"""The small files of a model folder other than weights."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedTokenizerFast
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megaunigame.errors import ModelError
from megaunigame.registry import unknown
from megaunigame.storage.copies import copy_file, real_file
from megaunigame.storage.foreign_text import one_line, quoted
from megaunigame.storage.untrusted_json import DEEPEST, is_deeper_than, parse, read_within

C = TypeVar("C", bound=PreTrainedConfig)
NOTES = ("transformers_version", "_from_model_config")
LARGEST_SETTINGS = 256 * 1024**2
"""Bytes; a tokenizer.json of 256,000 words has 33 million."""
MODEL_SETTINGS = ("config.json", "generation_config.json")
"""What a model reads and a processor does not."""
CODE = ("auto_map", "custom_pipelines")
"""Settings that name Python code, of the folder or of any repository, which transformers runs with trust_remote_code=True."""

SIZES_OF_LAYERS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "max_position_embeddings"),
)

log = logging.getLogger(__name__)


def read_settings(file: Path) -> dict[str, Any]:
    """An optional settings file; absent means every setting has its default. Raises ModelError when it is not JSON."""
    return _read_json(file) if file.is_file() else {}


def read_system_prompt(folder: Path, default: str = "") -> str:
    """Of processor_config.json; `default` where it has none. Raises ModelError when it is not a text."""
    file = folder / "processor_config.json"
    prompt = read_settings(file).get("system_prompt", default)
    if not isinstance(prompt, str):
        raise ModelError(f'system_prompt={quoted(prompt)} in {file} must be a text; "" for none.')
    return prompt


def is_whole(value: Any) -> bool:
    """Whether a value of a JSON file is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a finite number."""
    # Not isfinite, which fails for a whole number that no float holds.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def read_whole(settings: Mapping[str, Any], key: str, default: int, file: Path) -> int:
    """`key` of the settings read from `file`; `default` where it is not there. Raises ModelError unless it is a whole number,
    1 or more."""
    value = settings.get(key, default)
    if not is_whole(value) or value < 1:
        raise ModelError(f"{key}={quoted(value)} in {file} must be a whole number, 1 or more.")
    return value  # type: ignore[no-any-return]


def read_channels(folder: Path, key: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
    """`image_mean` or `image_std` of preprocessor_config.json. Raises ModelError when it is not three numbers."""
    file = folder / "preprocessor_config.json"
    values = read_settings(file).get(key, default)
    if not isinstance(values, list | tuple) or [type(value) in (int, float) for value in values] != [True] * 3:
        raise ModelError(f"{key}={quoted(values)} in {file} must be a list of three numbers, one per color.")
    red, green, blue = values
    return red, green, blue


def read_config_file(file: Path, hint: str) -> dict[str, Any]:
    """A config.json. Raises ModelError, with the hint what to give instead, when there is none or it is not JSON."""
    if not file.is_file():
        raise ModelError(f"No config.json in {file.parent}. {hint}")
    return _read_json(file)


def config_from(kind: type[C], settings: Mapping[str, Any], file: Path) -> C:
    """A configuration of transformers from the settings read from `file`.

    Raises ModelError for a value of another type, and for sizes of layers that cannot be.
    """
    try:
        config = kind.from_dict(dict(settings))
    except StrictDataclassError as error:
        raise ModelError(f"{file}: {one_line(error)}") from error
    except Exception as error:  # what no dataclass checks fails where it is first used
        raise ModelError(f"{file}: {type(error).__name__}: {one_line(error)}. Copy the file of the model again.") from error
    _check_layers(config, file)
    return config


def _check_layers(config: PreTrainedConfig, file: Path) -> None:
    """Raises ModelError for sizes that a module of transformers would take, and then fail at or compute nonsense with."""
    for name in SIZES_OF_LAYERS:
        value = getattr(config, name, None)
        if value is not None and (not is_whole(value) or value < 1):
            raise ModelError(f"{file}: {name}={quoted(value)} must be a whole number, 1 or more.")
    names = ("num_attention_heads", "num_key_value_heads", "hidden_size")
    heads, shared, width = (getattr(config, name, None) for name in names)
    if heads and shared and heads % shared:
        raise ModelError(f"{file}: num_attention_heads={heads} must be a multiple of num_key_value_heads={shared}.")
    if heads and width and not getattr(config, "head_dim", None) and width % heads:
        raise ModelError(f"{file}: hidden_size={width} must be a multiple of num_attention_heads={heads}.")
    if (kind := getattr(config, "hidden_act", None)) is not None and kind not in ACT2FN:
        raise ModelError(f"{file}: {unknown('hidden_act', kind, sorted(ACT2FN))}")
    rope = getattr(config, "rope_parameters", None) or {}
    above_0 = {"rope_theta": rope.get("rope_theta", 1), "rms_norm_eps": getattr(config, "rms_norm_eps", 1)}
    for name, value in above_0.items():
        if type(value) not in (int, float) or not value > 0:
            raise ModelError(f"{file}: {name}={quoted(value)} must be a number above 0.")
    kinds = ["default", *ROPE_INIT_FUNCTIONS]
    if rope.get("rope_type", "default") not in kinds:
        raise ModelError(f"{file}: {unknown('rope_type', str(rope['rope_type']), kinds)}")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = parse(read_within(file, LARGEST_SETTINGS), LARGEST_SETTINGS)
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error}.") from error
    except ValueError as error:  # of JSON and of UTF-8 too
        raise ModelError(f"{file} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} holds a {type(content).__name__}; it must be a JSON object.")
    return content


def write_settings_file(file: Path, settings: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def read_tokenizer(folder: Path, hint: str = "Copy the tokenizer files of the model there.") -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder. Raises ModelError, with the hint where it is published, when it has none, and for a
    tokenizer.json that describes none."""
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"No tokenizer.json in {folder}. {hint}")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        read_settings(folder / name)
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    except Exception as error:  # the tokenizers library raises plain Exception
        raise ModelError(
            f"{folder / 'tokenizer.json'} cannot be read as a tokenizer ({type(error).__name__}: {one_line(error)}). Copy "
            "tokenizer.json and tokenizer_config.json of the model again."
        ) from error
    # A long text is cut to the recipe's max_length later: transformers need not warn about its length.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def check_tokens(tokenizer: PreTrainedTokenizerFast, count: int, folder: Path, *, key: str = "vocab_size") -> None:
    """Raises ModelError for a tokenizer with an id of `count` or above, which the model has not for text.

    `key`: the setting that `count` follows from.
    """
    last = max(tokenizer.get_vocab().values())
    if last >= count:
        raise ModelError(
            f"The tokenizer in {folder} has tokens up to {last}; with the {key} of its model, {count - 1} is the last "
            "legal one. Take all files of one model."
        )


def named_ids(source: PreTrainedTokenizerFast | PreTrainedConfig) -> dict[str, int | None]:
    """First, last and padding token of a tokenizer or a configuration, as configurations name them."""
    return {name: getattr(source, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def read_generation_settings(folder: Path) -> dict[str, Any]:
    """generation_config.json without what transformers notes about itself in it."""
    settings = read_settings(folder / "generation_config.json")
    return {name: value for name, value in settings.items() if name not in NOTES}


def copy_settings(folder: Path, out: Path, without: Collection[str] = ()) -> None:
    """Copy what is neither weights, nor an index of weights, nor of an adapter, nor named in `without`; `out` is created.

    `CODE` is left out. Raises ModelError as `copy_file`, and for a configuration that is not JSON.
    """
    out.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if _is_setting(file) and file.name not in without:
            copy_file(file, out / file.name)
            if file.name.endswith("config.json"):
                _leave_out_code(out / file.name, file)


def check_settings(folder: Path) -> None:
    """Raises ModelError as `real_file` for a settings file of a model folder that is about to be published."""
    for file in sorted(file for file in folder.rglob("*") if _is_setting(file)):
        real_file(file)


def leave_out_code(folder: Path) -> None:
    """Take `CODE` out of all configurations in a folder that is about to be published.

    The code itself is not in it: who loaded the folder with trust_remote_code=True would run that of somebody else.
    """
    for file in sorted(folder.rglob("*config.json")):
        _leave_out_code(file, file)


def _is_setting(file: Path) -> bool:
    kind = file.suffix in (".json", ".jinja", ".txt", ".model") and not file.name.endswith(".index.json")
    return kind and not file.name.startswith("adapter_")


def _leave_out_code(copy: Path, file: Path) -> None:
    """Write the `copy` of the configuration `file` again, without `CODE`, if it has some."""
    content = _read_json(file)
    if is_deeper_than(content):
        raise ModelError(f"{file} is nested deeper than {DEEPEST} lists and objects. Take it out of the model folder.")
    without = _without_code(content)
    if without != content:
        log.warning("%s: names of Python code (%s) are left out.", copy, " or ".join(CODE))
        write_settings_file(copy, without)


def _without_code(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_code(inner) for name, inner in value.items() if name not in CODE}
    return [_without_code(inner) for inner in value] if isinstance(value, list) else value
