"""Writing Harmon folders, and building small ones from scratch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from megaunigame.models.harmon.configuration import Drawing, HarmonConfig
from megaunigame.models.harmon.conversation import IMAGE, TURN_END, TURN_START
from megaunigame.models.harmon.keys import AUTOENCODER, EMBEDDING
from megaunigame.models.harmon.parts import autoencoder, trained_parts
from megaunigame.models.text.small_tokenizer import small_tokenizer
from megaunigame.models.weights.settings_files import write_settings_file
from megaunigame.models.weights.tensor_files import save_state

PAD = "<|endoftext|>"
STD = 0.02
"""Of positions and single tokens, and of layers that the official code begins at zero: with zeros nothing would learn in the
first steps."""


def write_folder(
    path: str | Path,
    config: HarmonConfig,
    state: Mapping[str, Tensor] | None,
    tokenizer: PreTrainedTokenizerFast,
    *,
    system_prompt: str = "",
) -> None:
    """Write config.json, model.safetensors and the tokenizer. `state` has our names, the autoencoder's under `vae.`; None: no
    weights."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    config.write(folder)
    tokenizer.save_pretrained(folder)
    if system_prompt:
        write_settings_file(folder / "processor_config.json", {"system_prompt": system_prompt})
    if state is not None:
        save_state(folder, state)


def config_for(tokenizer: PreTrainedTokenizerFast, shape: Mapping[str, Any]) -> HarmonConfig:
    """The Harmon of a `shape` (config.json without `model_type` and token ids) for `tokenizer`."""
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    llm = Qwen2Config(**{"vocab_size": len(tokenizer), **ids, **shape["llm"]}, tie_word_embeddings=True)
    return HarmonConfig(**{**shape, "llm": llm, "drawing": Drawing(**shape["drawing"])})


def random_state(config: HarmonConfig, seed: int) -> dict[str, Tensor]:
    """Freshly initialized weights under our names, the autoencoder's under `vae.`; as in the official code, but for `STD`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        llm = Qwen2ForCausalLM(config.llm).state_dict()
        parts = trained_parts(config)
        state = {f"llm.{name}": value.clone() for name, value in llm.items() if f"llm.{name}" != EMBEDDING}
        for name in ("mar", "proj_in", "proj_out"):
            _initialize(parts[name])
            state |= {f"{name}.{key}": value for key, value in parts[name].state_dict().items()}
        return state | {AUTOENCODER + key: value for key, value in autoencoder(config).state_dict().items()}


@torch.no_grad()
def _initialize(part: nn.Module) -> None:
    for name, parameter in part.named_parameters():
        if "adaLN_modulation" in name or "final_layer" in name or "time_embed" in name and parameter.dim() > 1:
            parameter.normal_(std=STD)
        elif name.endswith(("_learned", "fake_latent", "mask_token")):
            parameter.normal_(std=STD)
        elif parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocabulary` tokens with Qwen's special ones."""
    return small_tokenizer(texts, vocabulary, [PAD, TURN_START, TURN_END, IMAGE], pad=PAD, bos=None, eos=TURN_END)
