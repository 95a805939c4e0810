"""Writing Emu3.5 folders in the official layout, and building small ones from scratch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from megaunigame.models.emu3_5.configuration import TOKENIZER_FOLDER, Emu3p5Config, VisionConfig
from megaunigame.models.emu3_5.conversation import (
    BEGIN_OF_ANSWER,
    BEGIN_OF_CODES,
    BEGIN_OF_IMAGE,
    BOS,
    END_OF_ANSWER,
    END_OF_IMAGE,
    EOS,
    LINE_END,
    PAD,
    SYSTEM_PROMPT,
    code_token,
)
from megaunigame.models.emu3_5.keys import VISION_TOKENIZER
from megaunigame.models.emu3_5.tokenizer import VOCABULARY
from megaunigame.models.emu3_5.vq import VisionTokenizer
from megaunigame.models.shapes import check_channels
from megaunigame.models.text.small_tokenizer import small_tokenizer
from megaunigame.models.weights.settings_files import MODEL_SETTINGS, copy_settings, named_ids, write_settings_file
from megaunigame.models.weights.tensor_files import save_state_in_two
from megaunigame.storage.copies import copy_file


def write_folder(
    path: str | Path,
    config: Emu3p5Config,
    state: Mapping[str, Tensor] | None,
    tokenizer: PreTrainedTokenizerFast,
    *,
    image_size: int,
    source_size: int | None = None,
    system_prompt: str = SYSTEM_PROMPT,
) -> None:
    """Write the weights and all settings, the vision tokenizer into a separate folder.

    `state` has our names; None: no weights. `source_size` None: `image_size`.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    config.write(folder)
    tokenizer.save_pretrained(folder)
    source = image_size if source_size is None else source_size
    sides = {"image_size": image_size, "source_size": source, "system_prompt": system_prompt}
    write_settings_file(folder / "processor_config.json", sides)
    if state is not None:
        save_state_in_two(folder, state, VISION_TOKENIZER, folder / TOKENIZER_FOLDER)


def config_for(tokenizer: PreTrainedTokenizerFast, shape: Mapping[str, Any]) -> Emu3p5Config:
    """The Emu3.5 of a `shape` (both configurations, without token ids) for `tokenizer`, which must have all its codes.

    Raises ModelError for a width of the vision tokenizer that is not legal.
    """
    check_channels(shape["vq_config"]["base_channels"])
    text = {
        "vocab_size": len(tokenizer),
        **named_ids(tokenizer),
        "tie_word_embeddings": False,
        **shape["text_config"],
    }
    return Emu3p5Config(Qwen3Config(**text), VisionConfig.of(shape["vq_config"]))


def random_state(config: Emu3p5Config, seed: int) -> dict[str, Tensor]:
    """Freshly initialized weights under our names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = Qwen3ForCausalLM(config.text_config).state_dict()
        vision = VisionTokenizer(config.vq_config)
        for module in vision.modules():
            if isinstance(module, nn.Conv2d | nn.GroupNorm | nn.Embedding):
                module.reset_parameters()
    return state | {VISION_TOKENIZER + name: value for name, value in vision.state_dict().items()}


def special_tokens(codes: int) -> list[str]:
    """The special tokens that sequences are made of, the `codes` last, one after the other."""
    named = [PAD, BOS, EOS, LINE_END, BEGIN_OF_ANSWER, END_OF_ANSWER, BEGIN_OF_CODES, BEGIN_OF_IMAGE, END_OF_IMAGE]
    return [*named, *(code_token(code) for code in range(codes))]


def train_tokenizer(texts: Iterable[str], vocabulary: int, codes: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the special tokens; it can spell any text.

    At most `vocabulary` tokens, plus one for each of the `codes`.
    """
    return small_tokenizer(texts, vocabulary + codes, special_tokens(codes), pad=PAD, bos=BOS, eos=EOS)


def export_processor(path: str, out: Path) -> None:
    """Copy the tokenizer and the picture settings of the folder `path` unchanged."""
    copy_settings(Path(path), out, without=MODEL_SETTINGS)
    _copy_vocabulary(path, out)


def export_settings(path: str, out: Path) -> None:
    """Copy all small files of the folder `path` unchanged, those of its vision tokenizer included."""
    copy_settings(Path(path), out)
    copy_settings(Path(path) / TOKENIZER_FOLDER, out / TOKENIZER_FOLDER)
    _copy_vocabulary(path, out)


def _copy_vocabulary(path: str, out: Path) -> None:
    """The released vocabulary, whose name does not end like that of a setting."""
    if (Path(path) / VOCABULARY).is_file():
        copy_file(Path(path) / VOCABULARY, out / VOCABULARY)
