"""Writing Chameleon folders in the Hugging Face layout, and building small ones from scratch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, PreTrainedTokenizerFast

from megaunigame.models.chameleon.code_names import code_token
from megaunigame.models.chameleon.conversation import BEGIN_OF_IMAGE, END_OF_IMAGE, SEPARATOR
from megaunigame.models.chameleon.keys import IMAGE_TOKENIZER
from megaunigame.models.chameleon.processor_files import write_model_settings, write_processor
from megaunigame.models.chameleon.text_tokenizer import BOS, EOS, PAD, PLACEHOLDER, vocabulary_map
from megaunigame.models.chameleon.vq import ImageTokenizer
from megaunigame.models.shapes import check_channels
from megaunigame.models.text.small_tokenizer import small_tokenizer
from megaunigame.models.weights.settings_files import named_ids
from megaunigame.models.weights.tensor_files import save_state

CODEBOOK = "quantize.embedding.weight"
LATENT_STD = 0.2
"""About that of the latents of random layers: with a codebook of another scale, most pictures would have the same few codes."""


def write_folder(
    path: str | Path,
    config: ChameleonConfig,
    state: Mapping[str, Tensor] | None,
    tokenizer: PreTrainedTokenizerFast,
    *,
    image_size: int | None = None,
    source_size: int | None = None,
    system_prompt: str = "",
) -> None:
    """Write the weights and all settings.

    `state` has Hugging Face names, the image tokenizer with its decoder under `model.vqmodel.`; None: no weights. `image_size`
    None: the resolution of the image tokenizer; `source_size` None: `image_size`. transformers' own
    ChameleonForConditionalGeneration and ChameleonProcessor can read the folder; the decoder is unknown to them.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    write_model_settings(folder, config, {})
    image = config.vq_config.resolution if image_size is None else image_size
    source = image if source_size is None else source_size
    write_processor(folder, config, tokenizer, image_size=image, source_size=source, system_prompt=system_prompt)
    if state is not None:
        save_state(folder, state)


def config_for(tokenizer: PreTrainedTokenizerFast, shape: Mapping[str, Any]) -> ChameleonConfig:
    """The Chameleon of a `shape` (ChameleonConfig without token ids) for `tokenizer`, which must have all its codes.

    One code covers 2^(number of channel multipliers - 1) pixels along an edge. Raises ModelError for a width that is not legal.
    """
    check_channels(shape["vq_config"]["base_channels"])
    vocabulary = vocabulary_map(tokenizer.get_vocab(), shape["vq_config"]["num_embeddings"])
    return ChameleonConfig(**{"vocab_size": len(tokenizer), **named_ids(tokenizer), "vocabulary_map": vocabulary, **shape})


def random_state(config: ChameleonConfig, seed: int) -> dict[str, Tensor]:
    """Freshly initialized weights under Hugging Face names, with the decoder of the image tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = ChameleonForConditionalGeneration(config).state_dict()
        # transformers has no decoder, and its initial weights make nearly the same latent of every picture.
        tokenizer = ImageTokenizer(config.vq_config, range(config.vq_config.num_embeddings)).state_dict()
        tokenizer[CODEBOOK].mul_(LATENT_STD)
    return state | {IMAGE_TOKENIZER + name: value for name, value in tokenizer.items()}


def special_tokens(codes: int) -> list[str]:
    """Chameleon's special tokens. Those of codes are in the order of their names, which is not that of the codes."""
    of_codes = sorted(code_token(code) for code in range(codes))
    return [BOS, PAD, EOS, *of_codes, END_OF_IMAGE, BEGIN_OF_IMAGE, SEPARATOR, PLACEHOLDER]


def train_tokenizer(texts: Iterable[str], vocabulary: int, codes: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with Chameleon's special tokens; it can spell any text.

    At most `vocabulary` tokens, plus one for each of the `codes`.
    """
    return small_tokenizer(texts, vocabulary + codes, special_tokens(codes), pad=PAD, bos=BOS, eos=EOS)
