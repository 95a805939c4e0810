"""Writing BLIP3o-NEXT folders, and building small ones from scratch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

from megaunigame.models.blip3o_next.configuration import SCALES, Blip3oNextConfig, Choice
from megaunigame.models.blip3o_next.conversation import (
    BEGIN_OF_IMAGE,
    END_OF_IMAGE,
    PAD,
    SYSTEM_PROMPT,
    TURN_END,
    TURN_START,
    code_token,
    scale_token,
)
from megaunigame.models.blip3o_next.keys import KEYS
from megaunigame.models.blip3o_next.parts import FrozenPictures, trained_parts
from megaunigame.models.blip3o_next.processor import token_ids
from megaunigame.models.blip3o_next.vq import VisionConfig
from megaunigame.models.diffusion.flow import Flow
from megaunigame.models.text.small_tokenizer import small_tokenizer
from megaunigame.models.weights.settings_files import named_ids, write_settings_file
from megaunigame.models.weights.tensor_files import save_state

CONNECTOR_SCALE = math.sqrt(5.5)
"""Weight of the connector's norm at the beginning, as in the official code."""


def write_folder(
    path: str | Path,
    config: Blip3oNextConfig,
    state: Mapping[str, Tensor] | None,
    tokenizer: PreTrainedTokenizerFast,
    *,
    system_prompt: str = SYSTEM_PROMPT,
) -> None:
    """Write config.json, model.safetensors, the tokenizer and the system prompt.

    `state` has our names, those of the frozen modules too; None: no weights.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    config.write(folder)
    tokenizer.save_pretrained(folder)
    write_settings_file(folder / "processor_config.json", {"system_prompt": system_prompt})
    if state is not None:
        save_state(folder, state)


def config_for(tokenizer: PreTrainedTokenizerFast, shape: Mapping[str, Any]) -> Blip3oNextConfig:
    """The BLIP3o-NEXT of a `shape` (without token ids) for `tokenizer`, which must have all its codes."""
    text = {"vocab_size": len(tokenizer), **named_ids(tokenizer), "tie_word_embeddings": True, **shape["text_config"]}
    return Blip3oNextConfig(
        text_config=Qwen3Config(**text),
        ids=token_ids(tokenizer),
        image_size=shape["image_size"],
        sana=shape["sana"],
        vae=shape["vae"],
        vq_config=VisionConfig(**shape["vq_config"]),
        flow=Flow(**shape["flow"]),
        choice=Choice(**shape["choice"]),
    )


def random_state(config: Blip3oNextConfig, seed: int) -> dict[str, Tensor]:
    """Freshly initialized weights under our names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = trained_parts(config)["model"]
        frozen = FrozenPictures(config)
        for module in (*model.modules(), *frozen.modules()):
            # Other parameters were drawn when their module was built.
            if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm | nn.Embedding):
                module.reset_parameters()
        state = {f"model.{name}": value for name, value in model.state_dict().items()}
        state |= {f"model.{name}": value for name, value in Qwen3Model(config.text_config).state_dict().items()}
        state["model.diffusion_connector.3.weight"] = torch.full_like(
            state["model.diffusion_connector.3.weight"], CONNECTOR_SCALE
        )
        return state | {KEYS.frozen_root + name: value for name, value in frozen.state_dict().items()}


def special_tokens(codes: int) -> list[str]:
    """The special tokens that sequences are made of, the `codes` last, one after the other."""
    named = [PAD, TURN_START, TURN_END, BEGIN_OF_IMAGE, END_OF_IMAGE, *(scale_token(scale) for scale in range(SCALES))]
    return [*named, *(code_token(code) for code in range(codes))]


def train_tokenizer(texts: Iterable[str], vocabulary: int, codes: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the special tokens; it can spell any text.

    At most `vocabulary` tokens, plus one for each of the `codes`.
    """
    return small_tokenizer(texts, vocabulary + codes, special_tokens(codes), pad=PAD, bos=None, eos=TURN_END)
