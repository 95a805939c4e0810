"""Writing OpenUni folders, and building small ones from scratch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import InternVLConfig, InternVLForConditionalGeneration, PreTrainedTokenizerFast

from megaunigame.models.diffusion.flow import Flow
from megaunigame.models.diffusion.modules import autoencoder
from megaunigame.models.openuni.configuration import OpenUniConfig
from megaunigame.models.openuni.conversation import BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE, TURN_END, TURN_START
from megaunigame.models.openuni.parts import trained_parts
from megaunigame.models.openuni.processor import IMAGENET_MEAN, IMAGENET_STD
from megaunigame.models.text.small_tokenizer import small_tokenizer
from megaunigame.models.weights.settings_files import write_settings_file
from megaunigame.models.weights.tensor_files import save_state

PAD = "<|endoftext|>"
POSITION_STD = 0.02
BRIDGE = ("meta_queries", "connector_input", "connector", "projector")


def write_folder(
    path: str | Path,
    config: OpenUniConfig,
    state: Mapping[str, Tensor] | None,
    tokenizer: PreTrainedTokenizerFast,
    *,
    system_prompt: str = "",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> None:
    """Write config.json, model.safetensors, the tokenizer and the picture settings.

    `state` has our names, the autoencoder under `vae.`; None: no weights; `mean` and `std` are those of the understanding path.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    config.write(folder)
    tokenizer.save_pretrained(folder)
    pictures = {"image_mean": list(mean), "image_std": list(std)}
    write_settings_file(folder / "preprocessor_config.json", pictures)
    if system_prompt:
        write_settings_file(folder / "processor_config.json", {"system_prompt": system_prompt})
    if state is not None:
        save_state(folder, state)


def config_for(tokenizer: PreTrainedTokenizerFast, shape: Mapping[str, Any]) -> OpenUniConfig:
    """The OpenUni of a `shape` (config.json without `model_type` and token ids) for `tokenizer`."""
    text = {
        "model_type": "qwen2",
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
        **shape["internvl"]["text_config"],
    }
    internvl = InternVLConfig(
        **{**shape["internvl"], "text_config": text},
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        tie_word_embeddings=False,
    )
    return OpenUniConfig(**{**shape, "internvl": internvl, "flow": Flow(**shape["flow"])})


def random_state(config: OpenUniConfig, seed: int) -> dict[str, Tensor]:
    """Freshly initialized weights under our names, the autoencoder's under `vae.`.

    The tower's positions are drawn too: transformers leaves them at zero.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        internvl = InternVLForConditionalGeneration(config.internvl)
        nn.init.normal_(internvl.model.vision_tower.embeddings.position_embeddings, std=POSITION_STD)
        state = internvl.state_dict()
        parts = trained_parts(config)
        for name, part in {"transformer": parts["transformer"], "vae": autoencoder(config.autoencoder)}.items():
            for module in part.modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    module.reset_parameters()  # the other parameters were drawn when the part was built
            state |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
    return state | fresh_bridge(config, seed)


def fresh_bridge(config: OpenUniConfig, seed: int) -> dict[str, Tensor]:
    """Fresh weights of `BRIDGE`, between language model and transformer, initialized as in the official code."""
    parts = trained_parts(config)
    bridge = nn.ModuleDict({name: part for name, part in parts.items() if name in BRIDGE})
    generator = torch.Generator().manual_seed(seed)
    for module in bridge.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    nn.init.normal_(parts["meta_queries"].weight, std=config.width**-0.5, generator=generator)
    return bridge.state_dict()


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocabulary` tokens with Qwen's and InternVL's special ones."""
    special = [PAD, TURN_START, TURN_END, BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE]
    return small_tokenizer(texts, vocabulary, special, pad=PAD, bos=None, eos=TURN_END)
