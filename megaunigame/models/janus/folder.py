"""Writing Janus folders in the Hugging Face layout, and building small ones from scratch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import JanusConfig, JanusForConditionalGeneration, PreTrainedTokenizerFast

from megaunigame.errors import ModelError
from megaunigame.models.janus.conversation import BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE
from megaunigame.models.janus.processor_files import write_model_settings, write_processor
from megaunigame.models.shapes import check_channels
from megaunigame.models.text.processor import HALF
from megaunigame.models.text.small_tokenizer import small_tokenizer
from megaunigame.models.weights.tensor_files import save_state

PAD, BOS, EOS = "<pad>", "<s>", "</s>"


def write_folder(
    path: str | Path,
    config: JanusConfig,
    state: Mapping[str, Tensor] | None,
    tokenizer: PreTrainedTokenizerFast,
    *,
    system_prompt: str = "",
    mean: Sequence[float] = HALF,
    std: Sequence[float] = HALF,
) -> None:
    """Write the weights and all settings.

    `state` has Hugging Face names, the image tokenizer under `model.vqmodel.`; None: no weights; `mean` and `std` are those
    of the understanding path. transformers' own JanusForConditionalGeneration and JanusProcessor can read the folder.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    write_model_settings(folder, config, tokenizer, {})
    write_processor(folder, config, tokenizer, system_prompt=system_prompt, mean=mean, std=std)
    if state is not None:
        save_state(folder, state)


def config_for(tokenizer: PreTrainedTokenizerFast, shape: Mapping[str, Any]) -> JanusConfig:
    """The Janus of a `shape` (JanusConfig without token ids; the vocabulary is that of `tokenizer` unless it names one).

    Raises ModelError when the picture grids differ or a width is not legal.
    """
    text = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
        **shape["text_config"],
    }
    image_token = tokenizer.convert_tokens_to_ids(IMAGE)
    config = JanusConfig(**{**shape, "text_config": text}, image_token_id=image_token, tie_word_embeddings=False)
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    multipliers = config.vq_config.channel_multiplier
    codes_grid = side // 2 ** (len(multipliers) - 1)
    if side // patch != codes_grid or side % patch:
        raise ModelError(
            f"image_size={side} with patch_size={patch} gives a grid of {side / patch:g}, and "
            f"{len(multipliers)} channel multipliers give {codes_grid}. Both grids must be equal: the patch "
            "size is 2 to the power of (number of multipliers - 1)."
        )
    check_channels(config.vq_config.base_channels)
    return config


def random_state(config: JanusConfig, seed: int) -> dict[str, Tensor]:
    """Freshly initialized weights under Hugging Face names; the codebook has rows of unit length."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = JanusForConditionalGeneration(config).state_dict()
        codebook = "model.vqmodel.quantize.embedding.weight"
        state[codebook] = F.normalize(torch.randn(state[codebook].shape), dim=-1)
    return state


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocabulary` tokens with Janus's special ones; it can spell any text."""
    special = [PAD, BOS, EOS, BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE]
    return small_tokenizer(texts, vocabulary, special, pad=PAD, bos=BOS, eos=EOS)
