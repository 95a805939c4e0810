"""config.json of a Show-o folder, as released or as written here.

A release names its language model and says nothing of its layers; those of `phi-1_5` are known, as are those of the released
vision tokenizer. Folders of other sizes say them::

    {"_class_name": "Showo", "vocab_size": 58498, "llm_vocab_size": 50295, "codebook_size": 8192, "num_vq_tokens": 256,
     "w_clip_vit": false, "llm_model_path": "microsoft/phi-1_5"}
    {"model_type": "show_o", ..., "text_config": {...}, "vq_config": {...}, "mask_schedule": "cosine",
     "generation_timesteps": 50}

The last two are in the yaml files of the official code, not in its config.json.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

from transformers import PhiConfig

from megaunigame.errors import ModelError
from megaunigame.models.shapes import read_shape
from megaunigame.models.show_o.masking import SCHEDULES
from megaunigame.models.vqgan.layers import Sizes
from megaunigame.models.weights.settings_files import is_whole, read_config_file, read_whole, write_settings_file
from megaunigame.registry import unknown

MODEL_TYPE, CLASS_NAME = "show_o", "Showo"
RELEASED = Path(__file__).with_name("1_3b.json")
RELEASED_LANGUAGE_MODEL = "phi-1_5"
SPECIAL_TOKENS = 10
"""Tokens between those of the text and the codes."""
COUNTS = ("vocab_size", "llm_vocab_size", "codebook_size", "num_vq_tokens")
TEXT_FRACTIONS = {"layer_norm_eps", "rope_theta", "partial_rotary_factor"}
TEXT_KEYS = {
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("max_position_embeddings", *TEXT_FRACTIONS),
}
VQ_LISTS = {"encoder_multipliers", "encoder_blocks", "decoder_multipliers", "decoder_blocks"}
"""One number per level."""
VQ_KEYS = {"code_bits", "base_channels", *VQ_LISTS}


@dataclass
class ShowOConfig:
    """The numbers of a model; `check` says whether they fit each other."""

    vocab_size: int
    """All tokens: text, special ones, codes, mask."""
    llm_vocab_size: int
    """Tokens of the text."""
    codebook_size: int
    """V: codes."""
    num_vq_tokens: int
    """N: codes of a generated picture."""
    text_config: dict[str, Any]
    """Sizes of the language model."""
    vq_config: dict[str, Any]
    """Sizes of the vision tokenizer, level 0 at the resolution of the picture."""
    mask_schedule: str = "cosine"
    """Share of masked codes, in training and in sampling."""
    generation_timesteps: int = 50
    """Steps in which a picture is drawn. The official commands take 18 for 256 pixels and 50 for 512."""

    def check(self) -> None:
        """Raises ModelError when the numbers do not fit each other."""
        for name, legal in (("text_config", TEXT_KEYS), ("vq_config", VQ_KEYS)):
            if set(getattr(self, name)) != legal:
                raise ModelError(f"{name} has the keys {sorted(getattr(self, name))}; it must have {sorted(legal)}.")
        for name, value in self.text_config.items():
            if name in TEXT_FRACTIONS and (type(value) not in (int, float) or value <= 0):
                raise ModelError(f"text_config.{name}={value!r} must be a number above 0.")
            if name not in TEXT_FRACTIONS and (not is_whole(value) or value < 1):
                raise ModelError(f"text_config.{name}={value!r} must be a whole number, 1 or more.")
        for name, value in self.vq_config.items():
            numbers = value if name in VQ_LISTS and isinstance(value, list) else [value]
            if isinstance(value, list) != (name in VQ_LISTS) or not numbers or not all(is_whole(n) and n > 0 for n in numbers):
                kind = "a list of whole numbers" if name in VQ_LISTS else "a whole number"
                raise ModelError(f"vq_config.{name}={value!r} must be {kind}, 1 or more.")
        whole = self.llm_vocab_size + SPECIAL_TOKENS + self.codebook_size + 1
        if self.vocab_size != whole:
            raise ModelError(
                f"vocab_size={self.vocab_size}, but llm_vocab_size={self.llm_vocab_size}, {SPECIAL_TOKENS} special tokens, "
                f"codebook_size={self.codebook_size} and the mask token make {whole}."
            )
        if self.codebook_size != 2 ** self.vq_config["code_bits"]:
            raise ModelError(f"codebook_size={self.codebook_size} is not 2^code_bits, with {self.vq_config['code_bits']} bits.")
        if self.side**2 != self.num_vq_tokens or self.side < 2:
            raise ModelError(f"num_vq_tokens={self.num_vq_tokens} must be a square, 4 or more: pictures are squares of codes.")
        for name in ("encoder_blocks", "decoder_multipliers", "decoder_blocks"):
            if len(self.vq_config[name]) != self.levels:
                raise ModelError(f"vq_config.{name} must have {self.levels} entries, as encoder_multipliers has.")
        if self.mask_schedule not in SCHEDULES:
            raise ModelError(unknown("mask_schedule", self.mask_schedule, list(SCHEDULES)))

    @property
    def side(self) -> int:
        """Codes along an edge of a generated picture."""
        return isqrt(self.num_vq_tokens)

    @property
    def levels(self) -> int:
        return len(self.vq_config["encoder_multipliers"])

    @property
    def cell(self) -> int:
        """Pixels of one code along an edge."""
        return 2 ** (self.levels - 1)

    @property
    def mask_token(self) -> int:
        """The last token."""
        return self.vocab_size - 1

    def get_text_config(self) -> PhiConfig:
        """The configuration of the language model, as in transformers' configurations."""
        sizes = dict(self.text_config)
        rope = {"rope_type": "default", **{name: sizes.pop(name) for name in ("rope_theta", "partial_rotary_factor")}}
        fixed = {"qk_layernorm": True, "hidden_act": "gelu_new", "tie_word_embeddings": False}
        return PhiConfig(vocab_size=self.vocab_size, rope_parameters=rope, **fixed, **sizes)

    def tokenizer_sizes(self) -> tuple[Sizes, Sizes]:
        """Of the vision tokenizer's encoder and decoder; neither attends outside of its middle."""
        vq = self.vq_config
        encoder, decoder = (
            Sizes(
                vq["base_channels"],
                tuple(vq[f"{part}_multipliers"]),
                tuple(vq[f"{part}_blocks"]),
                frozenset(),
                latent=vq["code_bits"],
            )
            for part in ("encoder", "decoder")
        )
        return encoder, decoder

    def to_dict(self) -> dict[str, Any]:
        return {"model_type": MODEL_TYPE, "_class_name": CLASS_NAME, "w_clip_vit": False, **dataclasses.asdict(self)}

    def write(self, folder: Path) -> None:
        """Write `folder`/config.json."""
        write_settings_file(folder / "config.json", self.to_dict())


def read_config(path: str | Path) -> ShowOConfig:
    """The configuration of the model folder `path`. Raises ModelError for another family or an incomplete file."""
    file = Path(path) / "config.json"
    raw = read_config_file(file, "Give a Show-o folder, such as the release show-o-512x512.")
    if raw.get("model_type") != MODEL_TYPE and raw.get("_class_name") != CLASS_NAME:
        raise ModelError(
            f"{file} describes model_type {raw.get('model_type')!r}; a Show-o folder has {MODEL_TYPE!r}, or the _class_name "
            f"{CLASS_NAME!r} of a release."
        )
    if raw.get("w_clip_vit"):
        raise ModelError(
            f"{file} has w_clip_vit: this variant of Show-o sees pictures with CLIP-ViT and has no code here. Give a release "
            "that sees them as codes, such as show-o-512x512."
        )
    missing = [name for name in COUNTS if name not in raw]
    if missing:
        raise ModelError(f"{file} has no {', '.join(missing)}, which a Show-o configuration has.")
    released = read_shape(RELEASED)
    if "text_config" not in raw and Path(str(raw.get("llm_model_path"))).name != RELEASED_LANGUAGE_MODEL:
        raise ModelError(
            f"{file} has no text_config, and its llm_model_path {raw.get('llm_model_path')!r} is not "
            f"{RELEASED_LANGUAGE_MODEL}, whose sizes are known. Write text_config with {', '.join(sorted(TEXT_KEYS))}."
        )
    names = {field.name for field in dataclasses.fields(ShowOConfig)}
    given = {name: value for name, value in raw.items() if name in names}
    check_types(given, file)
    config = ShowOConfig(**{name: released[name] for name in ("text_config", "vq_config")} | given)
    try:
        config.check()
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from error
    return config


def check_types(given: dict[str, Any], file: Path) -> None:
    """Raises ModelError for a value of another kind than ShowOConfig has."""
    for name in (*COUNTS, "generation_timesteps"):
        read_whole(given, name, 1, file)
    for name, kind, legal in (
        ("text_config", dict, "an object with the sizes of the language model"),
        ("vq_config", dict, "an object with the sizes of the vision tokenizer"),
        ("mask_schedule", str, f"one of {', '.join(SCHEDULES)}"),
    ):
        if name in given and not isinstance(given[name], kind):
            raise ModelError(f"{name}={given[name]!r} in {file} must be {legal}; or leave it out.")
