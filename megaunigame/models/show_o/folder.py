"""Writing Show-o folders, and building small ones from scratch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PhiForCausalLM, PreTrainedTokenizerFast

from megaunigame.models.shapes import check_channels
from megaunigame.models.show_o.configuration import SPECIAL_TOKENS, ShowOConfig
from megaunigame.models.show_o.conversation import END, PAD, add_special_tokens
from megaunigame.models.show_o.keys import VISION_TOKENIZER
from megaunigame.models.show_o.vq import Magvit
from megaunigame.models.text.small_tokenizer import small_tokenizer
from megaunigame.models.weights.settings_files import write_settings_file
from megaunigame.models.weights.tensor_files import save_state_in_two

TOKENIZER_FOLDER = "magvitv2"
"""Where a folder holds the weights of the vision tokenizer, which is published in a separate repository."""


def write_folder(
    path: str | Path,
    config: ShowOConfig,
    state: Mapping[str, Tensor] | None,
    tokenizer: PreTrainedTokenizerFast,
    *,
    source_size: int | None = None,
    system_prompt: str = "",
) -> None:
    """Write config.json, tokenizer, settings, and weights in two files as they are released.

    `state` has our names, the vision tokenizer's under `vq_model.`; None: no weights. `source_size` None: that of generated
    pictures.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    config.write(folder)
    tokenizer.save_pretrained(folder)
    source = config.side * config.cell if source_size is None else source_size
    write_settings_file(folder / "processor_config.json", {"source_size": source, "system_prompt": system_prompt})
    if state is not None:
        save_state_in_two(folder, state, VISION_TOKENIZER, folder / TOKENIZER_FOLDER)


def config_for(tokenizer: PreTrainedTokenizerFast, shape: Mapping[str, Any]) -> ShowOConfig:
    """The Show-o of a `shape` (config.json without the numbers of tokens) for `tokenizer`.

    Raises ModelError for numbers that are not legal.
    """
    check_channels(shape["vq_config"]["base_channels"])
    text = len(tokenizer) - (SPECIAL_TOKENS if PAD in tokenizer.get_vocab() else 0)
    codes = 2 ** shape["vq_config"]["code_bits"]
    config = ShowOConfig(text + SPECIAL_TOKENS + codes + 1, text, codes, **shape)
    config.check()
    return config


def random_state(config: ShowOConfig, seed: int) -> dict[str, Tensor]:
    """Freshly initialized weights under our names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        language_model = PhiForCausalLM(config.get_text_config()).state_dict()
        frozen = Magvit(*config.tokenizer_sizes()).state_dict()
    return {f"showo.{name}": value for name, value in language_model.items()} | {
        VISION_TOKENIZER + name: value for name, value in frozen.items()
    }


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocabulary` tokens, Show-o's special ones included; it can spell any text."""
    tokenizer = small_tokenizer(texts, vocabulary - SPECIAL_TOKENS, [END], pad=END, bos=END, eos=END)
    add_special_tokens(tokenizer, len(tokenizer), "memory")
    return tokenizer
