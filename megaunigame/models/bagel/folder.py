"""Writing BAGEL folders, and building small ones from scratch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from megaunigame.models.bagel.autoencoder import Autoencoder
from megaunigame.models.bagel.configuration import BagelConfig, config_of
from megaunigame.models.bagel.conversation import BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE, PAD, TEXT_END, TEXT_START
from megaunigame.models.bagel.keys import AUTOENCODER
from megaunigame.models.bagel.language_model import DRAWING
from megaunigame.models.bagel.parts import trained_parts
from megaunigame.models.bagel.processor import SETTINGS
from megaunigame.models.text.small_tokenizer import small_tokenizer
from megaunigame.models.weights.settings_files import write_settings_file
from megaunigame.models.weights.tensor_files import save_state

STD = 0.02


def write_folder(
    path: str | Path,
    config: BagelConfig,
    state: Mapping[str, Tensor] | None,
    tokenizer: PreTrainedTokenizerFast,
    *,
    image_size: int | None = None,
    source_size: int | None = None,
    system_prompt: str = "",
) -> None:
    """Write config.json, model.safetensors, the tokenizer and the picture settings.

    `state` has our names, the autoencoder under `vae.`; None: no weights. Sizes None: the largest that the model knows.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    config.write(folder)
    tokenizer.save_pretrained(folder)
    drawn = config.cell * config.max_latent_size if image_size is None else image_size
    seen = config.vision.patch_size * config.vit_max_num_patch_per_side if source_size is None else source_size
    settings = {"image_size": drawn, "source_size": seen, "system_prompt": system_prompt}
    write_settings_file(folder / SETTINGS, settings)
    if state is not None:
        save_state(folder, state)


def config_for(tokenizer: PreTrainedTokenizerFast, shape: Mapping[str, Any]) -> BagelConfig:
    """The BAGEL of a `shape` (config.json without token ids) for `tokenizer`. Raises ModelError for illegal numbers."""
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    text = {"vocab_size": len(tokenizer), **shape["text_config"], **ids}
    return config_of({**shape, "text_config": text}, Path("config.json"))


def random_state(config: BagelConfig, seed: int) -> dict[str, Tensor]:
    """Freshly initialized weights under our names, the autoencoder's under `vae.`.

    As in a training from a language model: the drawing set of weights begins as a copy of the other one. The last layer of the
    flow is not zero as there, so that small models show differences.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = nn.ModuleDict(trained_parts(config))
        for name, parameter in parts.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 1:  # of a norm
                nn.init.ones_(parameter)
            else:
                nn.init.normal_(parameter, std=STD)
        frozen = Autoencoder(*config.autoencoder_sizes(), config.vae["scale"], config.vae["shift"]).state_dict()
    state = dict(parts.state_dict())
    for name in state:
        if DRAWING in name:
            state[name] = state[name.replace(DRAWING, "")].clone()
    return state | {AUTOENCODER + name: value for name, value in frozen.items()}


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocabulary` tokens with Qwen's special ones; it can spell any text."""
    special = [PAD, TEXT_START, TEXT_END, BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE]
    return small_tokenizer(texts, vocabulary, special, pad=PAD, bos=None, eos=TEXT_END)
