"""Tiny random vision-language models of transformers, as folders: Qwen2.5-VL, InternVL, LLaVA, Gemma 3 and Chameleon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonImageProcessor,
    ChameleonProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from megaunigame.models.text.small_tokenizer import small_tokenizer
from tests.evaluation.fakes import TEXTS

DEPTH = {"qwen2_5_vl": 4, "internvl": 2, "llava": 3, "gemma3": 3, "chameleon": 3}
SPREAD = 12
"""Random weights of queries and keys times this, so that attention is far from uniform."""

CHATML = """{% for m in messages %}<|im_start|>{{ m.role }}
{% for part in m.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}\
{% endif %}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
VICUNA = """{{ bos_token }}{% for m in messages %}{{ 'USER: ' if m.role == 'user' else 'ASSISTANT: ' }}\
{% for part in m.content %}{% if part.type == 'image' %}<image>
{% else %}{{ part.text }} {% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"""
"""As LLaVA-1.5 has it: no token ends an answer, and the prompt lacks the space that comes before it."""
GEMMA = """{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'user' if m.role == 'user' else 'model' }}
{% for part in m.content %}{% if part.type == 'image' %}<start_of_image>{% else %}{{ part.text }}{% endif %}{% endfor %}\
<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""
CHAMELEON = """{{ bos_token }}{% for m in messages %}{% for part in m.content %}{% if part.type == 'image' %}<image>{% else %}\
{{ part.text }}{% endif %}{% endfor %}{% if m.role == 'assistant' %}{{ eos_token }}{% elif not loop.last %}{{ sep_token }}\
{% endif %}{% endfor %}"""
"""The processor writes the separator that ends a prompt, after a finished conversation too."""


def write_vision_language(kind: str, folder: Path) -> Path:
    """A folder with random weights, the same on every call."""
    torch.manual_seed(0)
    model, processor = {"qwen2_5_vl": _qwen, "internvl": _internvl, "llava": _llava, "gemma3": _gemma, "chameleon": _chameleon}[
        kind
    ]()
    for name, parameter in model.named_parameters():
        parameter.data *= SPREAD if "q_proj.w" in name or "k_proj.w" in name else 3 if parameter.dim() > 1 else 1
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _tokenizer(special: list[str], bos: str | None = None, eos: str = "</s>", **named: str) -> Any:
    all_special = [*special, *dict.fromkeys(token for token in ("<pad>", bos, eos) if token)]
    tokenizer = small_tokenizer(TEXTS, 320, all_special, pad="<pad>", bos=bos, eos=eos)
    tokenizer._set_model_specific_special_tokens(named)
    return tokenizer


def _qwen() -> tuple[Any, Any]:
    special = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = _tokenizer(special[:1] + special[2:], eos="<|im_end|>")
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4,
        "spatial_merge_size": 2, "fullatt_block_indexes": [1], "window_size": 16,
    }  # fmt: skip
    text = {
        "vocab_size": 330, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": DEPTH["qwen2_5_vl"],
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
    }  # fmt: skip
    named = {name: tokenizer.convert_tokens_to_ids(token) for name, token in (
        ("vision_start_token_id", special[2]), ("vision_end_token_id", special[3]),
        ("image_token_id", special[4]), ("video_token_id", special[5]),
    )}  # fmt: skip
    config = Qwen2_5_VLConfig(vision_config=vision, text_config=text, **named)
    size = {"shortest_edge": 64, "longest_edge": 400}
    images = Qwen2VLImageProcessor(patch_size=4, merge_size=2, size=size)
    videos = Qwen2VLVideoProcessor(patch_size=4, merge_size=2, size=size)
    return Qwen2_5_VLForConditionalGeneration(config), Qwen2_5_VLProcessor(images, tokenizer, videos, chat_template=CHATML)


def _internvl() -> tuple[Any, Any]:
    """Pictures are cut into tiles."""
    named = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    tokenizer = _tokenizer(["<|im_start|>", *named.values()], eos="<|im_end|>", **named)
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": [16, 16], "patch_size": [4, 4],
    }  # fmt: skip
    text = {
        "model_type": "qwen2", "vocab_size": 330, "hidden_size": 48, "intermediate_size": 64,
        "num_hidden_layers": DEPTH["internvl"], "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    context = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    config = InternVLConfig(
        vision_config=vision, text_config=text, image_token_id=context, image_seq_length=4, tie_word_embeddings=False
    )
    images = GotOcr2ImageProcessor(size={"height": 16, "width": 16}, min_patches=1, max_patches=3)
    videos = InternVLVideoProcessor(size={"height": 16, "width": 16})
    template = CHATML.replace("<|vision_start|><|image_pad|><|vision_end|>", "<IMG_CONTEXT>")
    processor = InternVLProcessor(images, tokenizer, videos, image_seq_length=4, chat_template=template)
    return InternVLForConditionalGeneration(config), processor


def _llava() -> tuple[Any, Any]:
    tokenizer = _tokenizer(["<image>"], bos="<s>")
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=4
    )
    text = LlamaConfig(
        vocab_size=330, hidden_size=48, intermediate_size=64, num_hidden_layers=DEPTH["llava"], num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=image_token, image_seq_length=16)
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    settings = {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return LlavaForConditionalGeneration(config), LlavaProcessor(images, tokenizer, chat_template=VICUNA, **settings)


def _gemma() -> tuple[Any, Any]:
    """Its picture attends to itself in both directions, and two of its layers have a window: masks that are not causal."""
    named = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    turns = ["<start_of_turn>", "<end_of_turn>"]
    tokenizer = _tokenizer([*turns, *named.values()], bos="<bos>", **named)
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
        "patch_size": 2,
    }  # fmt: skip
    text = {
        "vocab_size": 330, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": DEPTH["gemma3"],
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 20,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    }  # fmt: skip
    of_tokens = {f"{name}_index": tokenizer.convert_tokens_to_ids(token) for name, token in named.items()}
    config = Gemma3Config(vision_config=vision, text_config=text, mm_tokens_per_image=16, **of_tokens)
    images = Gemma3ImageProcessor(size={"height": 16, "width": 16}, do_pan_and_scan=False)
    processor = Gemma3Processor(images, tokenizer, chat_template=GEMMA, image_seq_length=16)
    return Gemma3ForConditionalGeneration(config), processor


def _chameleon() -> tuple[Any, Any]:
    """Its pictures are codes in the place of image tokens. The tokenizer has the template: its processor takes none."""
    named = {"image_token": "<image>", "boi_token": "<racm3:break>", "eoi_token": "<eoss>"}
    tokenizer = _tokenizer([*named.values(), "<reserved08706>"], bos="<s>", **named)
    tokenizer.sep_token, tokenizer.chat_template = "<reserved08706>", CHAMELEON
    names = "ABCDEFGHIJ"
    codes = {f"IMGIMG{names[n // 10]}{names[n % 10]}Z": 320 + n for n in range(8)}  # ids without text, as long as none is drawn
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = ChameleonConfig(
        vocab_size=330, hidden_size=48, intermediate_size=64, num_hidden_layers=DEPTH["chameleon"], num_attention_heads=4,
        num_key_value_heads=2, vocabulary_map={**codes, "<image>": image_token}, image_token_id=image_token,
        vq_config={
            "embed_dim": 8, "num_embeddings": 8, "latent_channels": 8, "resolution": 16, "base_channels": 32,
            "channel_multiplier": [1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [4],
        },
    )  # fmt: skip
    images = ChameleonImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return ChameleonForConditionalGeneration(config), ChameleonProcessor(images, tokenizer, image_seq_length=16)
