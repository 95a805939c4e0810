"""Writing OpenUni folders, and building small ones from nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import InternVLConfig, InternVLForConditionalGeneration, PreTrainedTokenizerFast

from megaunigame.errors import ModelError
from megaunigame.models.openuni.configuration import Flow, OpenUniConfig
from megaunigame.models.openuni.conversation import BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE, TURN_END, TURN_START
from megaunigame.models.openuni.parts import autoencoder, trained_parts
from megaunigame.models.openuni.processor import IMAGENET_MEAN, IMAGENET_STD
from megaunigame.models.text.small_tokenizer import small_tokenizer

PAD = "<|endoftext|>"
POSITION_STD = 0.02
BRIDGE = ("meta_queries", "connector_input", "connector", "projector")


def write_folder(
    path: str | Path,
    config: OpenUniConfig,
    state: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerFast,
    *,
    system_prompt: str = "",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> None:
    """Write config.json, model.safetensors, the tokenizer and the picture settings.

    `state` has our names, the autoencoder under `vae.`; `mean` and `std` are those of the understanding path.
    """
    folder = Path(path)
    write_small_files(folder, config, tokenizer, system_prompt=system_prompt, mean=mean, std=std)
    save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, folder / "model.safetensors", {"format": "pt"})


def write_small_files(
    folder: Path,
    config: OpenUniConfig,
    tokenizer: PreTrainedTokenizerFast,
    *,
    system_prompt: str = "",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> None:
    """What `write_folder` writes, without the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config.write(folder)
    tokenizer.save_pretrained(folder)
    pictures = {"image_mean": list(mean), "image_std": list(std)}
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures, indent=2) + "\n")
    if system_prompt:
        (folder / "processor_config.json").write_text(json.dumps({"system_prompt": system_prompt}, indent=2) + "\n")


def tiny_config(
    tokenizer: PreTrainedTokenizerFast,
    *,
    image_size: int = 64,
    source_size: int | None = None,
    patch_size: int = 4,
    vision_width: int = 64,
    vision_layers: int = 2,
    vision_heads: int = 4,
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
    intermediate: int = 256,
    max_positions: int = 2048,
    queries: int = 16,
    connector_width: int | None = None,
    connector_layers: int = 1,
    dit_width: int = 64,
    dit_layers: int = 2,
    dit_heads: int = 4,
    autoencoder_widths: Sequence[int] = (16, 32, 64, 64),
    autoencoder_layers: Sequence[int] = (1, 1, 1, 1),
    latent_channels: int = 8,
    scaling_factor: float = 1.0,
    flow: Flow | None = None,
) -> OpenUniConfig:
    """An OpenUni of any size for `tokenizer`. None: `source_size` is `image_size`, `connector_width` is `width`.

    The autoencoder shrinks by 2 per width after the first, and attends on its last level. Raises ModelError for sizes that
    do not fit each other.
    """
    source = image_size if source_size is None else source_size
    if source % (2 * patch_size):
        raise ModelError(f"Understood pictures of {source} pixels need a patch size of which {source} is an even multiple.")
    if any(w % latent_channels for w in (autoencoder_widths[-1],)) or dit_width % dit_heads:
        raise ModelError("The last width of the autoencoder must be a multiple of latent_channels, dit_width one of dit_heads.")
    connected = width if connector_width is None else connector_width
    levels = len(autoencoder_widths)
    blocks = [*["ResBlock"] * (levels - 1), "EfficientViTBlock"]
    scales: list[list[int]] = [*[[] for _ in range(levels - 1)], [5]]
    internvl = InternVLConfig(
        vision_config={
            "image_size": [source, source],
            "patch_size": [patch_size, patch_size],
            "hidden_size": vision_width,
            "num_hidden_layers": vision_layers,
            "num_attention_heads": vision_heads,
            "intermediate_size": 4 * vision_width,
            "attention_bias": True,
            "layer_scale_init_value": 1.0,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": max_positions,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": None,
        },
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(source // patch_size // 2) ** 2,
        tie_word_embeddings=False,
    )
    return OpenUniConfig(
        internvl=internvl,
        connector={
            "hidden_size": connected,
            "intermediate_size": 2 * connected,
            "num_hidden_layers": connector_layers,
            "num_attention_heads": heads,
        },
        transformer={
            "in_channels": latent_channels,
            "out_channels": latent_channels,
            "num_attention_heads": dit_heads,
            "attention_head_dim": dit_width // dit_heads,
            "num_layers": dit_layers,
            "num_cross_attention_heads": dit_heads,
            "cross_attention_head_dim": dit_width // dit_heads,
            "cross_attention_dim": dit_width,
            "caption_channels": dit_width,
            "sample_size": image_size // 2 ** (levels - 1),
        },
        autoencoder={
            "latent_channels": latent_channels,
            "attention_head_dim": 8,
            "encoder_block_types": blocks,
            "decoder_block_types": blocks,
            "encoder_block_out_channels": list(autoencoder_widths),
            "decoder_block_out_channels": list(autoencoder_widths),
            "encoder_layers_per_block": list(autoencoder_layers),
            "decoder_layers_per_block": list(autoencoder_layers),
            "encoder_qkv_multiscales": scales,
            "decoder_qkv_multiscales": scales,
            "downsample_block_type": "conv",
            "upsample_block_type": "interpolate",
            "scaling_factor": scaling_factor,
        },
        image_size=image_size,
        queries=queries,
        flow=flow or Flow(),
    )


def random_state(config: OpenUniConfig, seed: int) -> dict[str, Tensor]:
    """Freshly initialised weights under our names, the autoencoder's under `vae.`.

    The tower's positions are drawn too: transformers starts them, for checkpoints to overwrite, at zero.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        internvl = InternVLForConditionalGeneration(config.internvl)
        nn.init.normal_(internvl.model.vision_tower.embeddings.position_embeddings, std=POSITION_STD)
        state = internvl.state_dict()
        parts = trained_parts(config)
        for name, part in {"transformer": parts["transformer"], "vae": autoencoder(config)}.items():
            for module in part.modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    module.reset_parameters()  # the other parameters were drawn when the part was built
            state |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
    return state | fresh_bridge(config, seed)


def fresh_bridge(config: OpenUniConfig, seed: int) -> dict[str, Tensor]:
    """What stands between a language model and a transformer that do not know each other yet, initialised as officially."""
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
