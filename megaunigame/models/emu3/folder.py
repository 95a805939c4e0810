"""Writing Emu3 folders in the Hugging Face layout, and building small ones from scratch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Emu3Config, Emu3ForConditionalGeneration, PreTrainedTokenizerFast

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
from megaunigame.models.emu3.processor_files import PLACEHOLDER, write_model_settings, write_processor
from megaunigame.models.shapes import check_channels
from megaunigame.models.text.small_tokenizer import small_tokenizer
from megaunigame.models.weights.settings_files import named_ids
from megaunigame.models.weights.tensor_files import save_state


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
    """Write the weights and all settings.

    `state` has Hugging Face names, the vision tokenizer under `model.vqmodel.`; None: no weights. `source_size` None:
    `image_size`. transformers' own Emu3ForConditionalGeneration and Emu3Processor can read the folder.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    write_model_settings(folder, config, tokenizer, {})
    source = image_size if source_size is None else source_size
    write_processor(folder, config, tokenizer, image_size=image_size, source_size=source, system_prompt=system_prompt)
    if state is not None:
        save_state(folder, state)


def config_for(tokenizer: PreTrainedTokenizerFast, shape: Mapping[str, Any]) -> Emu3Config:
    """The Emu3 of a `shape` (Emu3Config without token ids) for `tokenizer`, which must have all its codes.

    One code covers 2^(number of channel multipliers - 1) pixels along an edge. Raises ModelError for a width that is not legal.
    """
    check_channels(shape["vq_config"]["base_channels"])
    text = {"vocab_size": len(tokenizer), **named_ids(tokenizer), **shape["text_config"]}
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
