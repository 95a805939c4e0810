"""The published size of Emu3 (arXiv 2409.18869) as a configuration, and the tiny one of the project's own scenes.

Numbers of the released config.json of the language model and of the vision tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import Emu3Config, PreTrainedTokenizerFast

from megaunigame.models.emu3.conversation import SYSTEM_PROMPT
from megaunigame.models.emu3.folder import tiny_config, train_tokenizer, write_small_files
from megaunigame.models.named_sizes import named
from megaunigame.models.text.small_tokenizer import STAND_IN_TEXT, STAND_IN_VOCABULARY

VOCABULARY, CODES, IMAGE_SIZE = 184622, 32768, 720
TINY_VOCABULARY, TINY_CODES, TINY_IMAGE_SIZE = 707, 256, 64


@dataclass(frozen=True)
class Size:
    """One size: what its folder is made of."""

    config: Callable[[PreTrainedTokenizerFast], Emu3Config]
    codes: int
    image_size: int
    system_prompt: str


def emu3_8b(tokenizer: PreTrainedTokenizerFast) -> Emu3Config:
    """8,762,751,807 parameters, the vision tokenizer included; a code covers 8 x 8 pixels."""
    return Emu3Config(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 9216,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
            "attention_dropout": 0.1,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vq_config={
            "codebook_size": CODES,
            "embed_dim": 4,
            "latent_channels": 4,
            "base_channels": 256,
            "channel_multiplier": [1, 2, 2, 4],
            "num_res_blocks": 2,
            "attn_resolutions": [3],
            "hidden_size": 1024,
            "temporal_downsample_factor": 4,
        },
        tie_word_embeddings=False,
    )


def tiny(tokenizer: PreTrainedTokenizerFast) -> Emu3Config:
    """64 x 64 pixels, 8 x 8 codes out of 256, one frame in time; the language model is as large as the tiny Janus's."""
    return tiny_config(
        tokenizer, width=192, layers=6, heads=6, intermediate=512, max_positions=512, codes=TINY_CODES, frames=1, res_blocks=1
    )


def _tiny_stand_in(tokenizer: PreTrainedTokenizerFast) -> Emu3Config:
    config = tiny(tokenizer)
    config.text_config.vocab_size = TINY_VOCABULARY
    return config


SIZES = {
    "tiny": Size(_tiny_stand_in, TINY_CODES, TINY_IMAGE_SIZE, system_prompt=""),
    "8b": Size(emu3_8b, CODES, IMAGE_SIZE, SYSTEM_PROMPT),
}


def write_size(size: str, folder: Path) -> None:
    """Write a folder of this size without weights. Raises ModelError for another size."""
    chosen = named(SIZES, size, "emu3")
    tokenizer = train_tokenizer(STAND_IN_TEXT, STAND_IN_VOCABULARY, chosen.codes)
    config = chosen.config(tokenizer)
    write_small_files(folder, config, tokenizer, image_size=chosen.image_size, system_prompt=chosen.system_prompt)
