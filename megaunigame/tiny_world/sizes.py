"""The sizes of the tiny Janus, in one place.

A 64 x 64 image with patches of 8 pixels gives 8 x 8 = 64 visual tokens, and the image tokenizer halves three times,
so a picture is also 8 x 8 = 64 codes. The two grids must be equal: transformers derives one from the other.
"""

from __future__ import annotations

from transformers import JanusConfig, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig

IMAGE_SIZE = 64
PATCH_SIZE = 8
GRID = IMAGE_SIZE // PATCH_SIZE
VISUAL_TOKENS = GRID * GRID
CODES = 256
CODE_DIM = 8
VOCABULARY = 512
LM_WIDTH = 192
MAX_LENGTH = 512


def vq_config() -> JanusVQVAEConfig:
    """Image tokenizer: 64 x 64 pixels -> 8 x 8 codes out of 256. GroupNorm(32) wants widths that 32 divides."""
    return JanusVQVAEConfig(
        embed_dim=CODE_DIM,
        num_embeddings=CODES,
        latent_channels=64,
        base_channels=32,
        channel_multiplier=[1, 1, 2, 2],
        num_res_blocks=1,
        num_patches=GRID,
        projection_dim=LM_WIDTH,
        image_token_embed_dim=LM_WIDTH,
    )


def vision_config() -> JanusVisionConfig:
    """Vision tower and the aligner that brings its tokens to the width of the language model."""
    return JanusVisionConfig(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        mlp_ratio=3.0,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=LM_WIDTH,
        num_image_tokens=VISUAL_TOKENS,
    )


def janus_config(image_token_id: int, bos_token_id: int, eos_token_id: int, pad_token_id: int) -> JanusConfig:
    """The whole model; the token ids are those of the text tokenizer."""
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=LM_WIDTH,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        intermediate_size=512,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=bos_token_id,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        tie_word_embeddings=False,
    )
    return JanusConfig(
        text_config=text,
        vision_config=vision_config(),
        vq_config=vq_config(),
        image_token_id=image_token_id,
        tie_word_embeddings=False,
    )
