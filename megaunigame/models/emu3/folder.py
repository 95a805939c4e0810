"""Writing Emu3 folders in the Hugging Face layout, and building small ones from scratch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Emu3Config, Emu3ForConditionalGeneration, PreTrainedTokenizerFast

from megaunigame.models.emu3.configuration import cell, read_config, read_sides
from megaunigame.models.emu3.conversation import (
    BEGIN_OF_CODES,
    BEGIN_OF_IMAGE,
    BOS,
    END_OF_IMAGE,
    EOS,
    FRAME_END,
    LINE_END,
    PAD,
    SYSTEM_PROMPT,
    code_token,
)
from megaunigame.models.shapes import check_channels
from megaunigame.models.text.processor import HALF
from megaunigame.models.text.small_tokenizer import small_tokenizer
from megaunigame.models.weights.settings_files import copy_settings, read_settings, read_tokenizer, write_settings_file
from megaunigame.models.weights.tensor_files import save_state

PLACEHOLDER = "<image>"
"""Placeholder of a picture in transformers' processor; ours needs none."""


def write_folder(
    path: str | Path,
    config: Emu3Config,
    state: Mapping[str, Tensor] | None,
    tokenizer: PreTrainedTokenizerFast,
    *,
    image_size: int,
    source_size: int | None = None,
    system_prompt: str = SYSTEM_PROMPT,
) -> None:
    """Write config.json, model.safetensors, the tokenizer and the picture settings.

    `state` has Hugging Face names, the vision tokenizer under `model.vqmodel.`; None: no weights. `source_size` None:
    `image_size`. transformers' own Emu3ForConditionalGeneration can read the folder.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    _write_config(config, tokenizer, folder)
    tokenizer.save_pretrained(folder)
    source = image_size if source_size is None else source_size
    pictures = {
        "image_processor_type": "Emu3ImageProcessor",
        "image_mean": list(HALF),
        "image_std": list(HALF),
        "spatial_factor": cell(config),
        "min_pixels": source**2,
        "max_pixels": source**2,
    }
    write_settings_file(folder / "preprocessor_config.json", pictures)
    processor = {"image_size": image_size, "source_size": source, "system_prompt": system_prompt}
    write_settings_file(folder / "processor_config.json", processor)
    if state is not None:
        save_state(folder, state)


def write_settings(path: str, out: Path) -> None:
    """Write the small files of the folder `path`, of either layout, as those of a Hugging Face folder `out`."""
    copy_settings(Path(path), out)
    config = read_config(path)
    image_size, source_size = read_sides(path, config)
    _write_config(config, read_tokenizer(Path(path)), out)
    settings = read_settings(out / "processor_config.json")
    sides = {"image_size": image_size, "source_size": source_size}
    write_settings_file(out / "processor_config.json", settings | sides)


def _write_config(config: Emu3Config, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """config.json with the part of the vocabulary that transformers' model reads from it."""
    vocabulary = tokenizer.get_vocab()
    names = [*(code_token(code) for code in range(config.vq_config.codebook_size)), LINE_END, PLACEHOLDER]
    config.vocabulary_map = {name: vocabulary[name] for name in names if name in vocabulary}
    config.architectures = ["Emu3ForConditionalGeneration"]
    config.save_pretrained(folder)


def config_for(tokenizer: PreTrainedTokenizerFast, shape: Mapping[str, Any]) -> Emu3Config:
    """The Emu3 of a `shape` (Emu3Config without token ids) for `tokenizer`, which must have all its codes.

    One code covers 2^(number of channel multipliers - 1) pixels along an edge. Raises ModelError for a width that is not legal.
    """
    check_channels(shape["vq_config"]["base_channels"])
    text = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **shape["text_config"],
    }
    return Emu3Config(text_config=text, vq_config=shape["vq_config"], tie_word_embeddings=False)


def random_state(config: Emu3Config, seed: int) -> dict[str, Tensor]:
    """Freshly initialized weights under Hugging Face names."""
    if config.vocabulary_map is None:
        config.vocabulary_map = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Emu3ForConditionalGeneration(config).state_dict()


def special_tokens(codes: int) -> list[str]:
    """Emu3's special tokens, the `codes` last, one after the other."""
    named = [PAD, BOS, EOS, LINE_END, FRAME_END, PLACEHOLDER, BEGIN_OF_CODES, BEGIN_OF_IMAGE, END_OF_IMAGE]
    return [*named, *(code_token(code) for code in range(codes))]


def train_tokenizer(texts: Iterable[str], vocabulary: int, codes: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with Emu3's special tokens; it can spell any text.

    At most `vocabulary` tokens, plus one for each of the `codes`.
    """
    return small_tokenizer(texts, vocabulary + codes, special_tokens(codes), pad=PAD, bos=BOS, eos=EOS)
