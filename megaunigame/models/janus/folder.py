"""Writing Janus folders in the Hugging Face layout, and building small ones from nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import JanusConfig, JanusForConditionalGeneration, PreTrainedTokenizerFast

from megaunigame.errors import ModelError
from megaunigame.models.janus.conversation import BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE
from megaunigame.models.text.processor import HALF
from megaunigame.models.text.small_tokenizer import small_tokenizer

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
GROUP_NORM_GROUPS = 32


def write_folder(
    path: str | Path,
    config: JanusConfig,
    state: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerFast,
    *,
    system_prompt: str = "",
    mean: Sequence[float] = HALF,
    std: Sequence[float] = HALF,
) -> None:
    """Write config.json, model.safetensors, the tokenizer and the picture settings.

    `state` has Hugging Face names, the image tokenizer under `model.vqmodel.`; `mean` and `std` are those of the
    understanding path. transformers' own JanusForConditionalGeneration can read the folder.
    """
    folder = Path(path)
    write_small_files(folder, config, tokenizer, system_prompt=system_prompt, mean=mean, std=std)
    save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, folder / "model.safetensors", {"format": "pt"})


def write_small_files(
    folder: Path,
    config: JanusConfig,
    tokenizer: PreTrainedTokenizerFast,
    *,
    system_prompt: str = "",
    mean: Sequence[float] = HALF,
    std: Sequence[float] = HALF,
) -> None:
    """What `write_folder` writes, without the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config.architectures = ["JanusForConditionalGeneration"]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    side = config.vision_config.image_size
    pictures = {
        "image_processor_type": "JanusImageProcessor",
        "size": {"height": side, "width": side},
        "image_mean": list(mean),
        "image_std": list(std),
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures, indent=2) + "\n")
    if system_prompt:
        (folder / "processor_config.json").write_text(json.dumps({"system_prompt": system_prompt}, indent=2) + "\n")


def tiny_config(
    tokenizer: PreTrainedTokenizerFast,
    *,
    image_size: int = 64,
    patch_size: int = 8,
    vision_width: int = 64,
    vision_layers: int = 2,
    vision_heads: int = 4,
    vision_mlp_ratio: float = 4.0,
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
    intermediate: int = 256,
    max_positions: int = 2048,
    base_channels: int = 32,
    channel_multiplier: Sequence[int] = (1, 1, 2, 2),
    res_blocks: int = 1,
    latent_channels: int = 64,
    codes: int = 256,
    code_width: int = 8,
) -> JanusConfig:
    """A Janus of any size for `tokenizer`. Raises ModelError when the picture grids differ or a width is not legal."""
    grid = image_size // patch_size
    codes_grid = image_size // 2 ** (len(channel_multiplier) - 1)
    if grid != codes_grid or image_size % patch_size:
        raise ModelError(
            f"image_size={image_size} with patch_size={patch_size} gives a grid of {image_size / patch_size:g}, and "
            f"{len(channel_multiplier)} channel multipliers give {codes_grid}. Both grids must be equal: the patch "
            "size is 2 to the power of (number of multipliers - 1)."
        )
    if base_channels % GROUP_NORM_GROUPS:
        raise ModelError(f"base_channels={base_channels} must be a multiple of {GROUP_NORM_GROUPS} (norm groups).")
    return JanusConfig(
        vision_config={
            "image_size": image_size,
            "patch_size": patch_size,
            "hidden_size": vision_width,
            "num_hidden_layers": vision_layers,
            "num_attention_heads": vision_heads,
            "mlp_ratio": vision_mlp_ratio,
            "projection_dim": width,
            "num_image_tokens": grid * grid,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": max_positions,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": None,
        },
        vq_config={
            "base_channels": base_channels,
            "channel_multiplier": list(channel_multiplier),
            "num_res_blocks": res_blocks,
            "latent_channels": latent_channels,
            "num_embeddings": codes,
            "embed_dim": code_width,
            "projection_dim": width,
            "image_token_embed_dim": width,
        },
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        tie_word_embeddings=False,
    )


def random_state(config: JanusConfig, seed: int) -> dict[str, Tensor]:
    """Freshly initialised weights under Hugging Face names; the codebook has rows of unit length."""
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
