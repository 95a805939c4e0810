"""The sizes of the tiny Janus, from megaunigame/models/janus/tiny.json.

A 64 x 64 image with patches of 8 pixels gives 8 x 8 = 64 visual tokens, and the image tokenizer halves three times,
so a picture is also 8 x 8 = 64 codes. The two grids must be equal: transformers derives one from the other.
"""

from __future__ import annotations

from transformers import JanusConfig, JanusVisionConfig, JanusVQVAEConfig, PreTrainedTokenizerFast

from megaunigame.models.janus import folder
from megaunigame.models.janus.sizes import TINY
from megaunigame.models.shapes import read_shape

IMAGE_SIZE = 64
PATCH_SIZE = 8
GRID = IMAGE_SIZE // PATCH_SIZE
VISUAL_TOKENS = GRID * GRID
CODES = 256
VOCABULARY = 512
MAX_LENGTH = 512


def vq_config() -> JanusVQVAEConfig:
    """Image tokenizer: 64 x 64 pixels -> 8 x 8 codes out of 256. GroupNorm(32) needs widths that are multiples of 32."""
    return JanusVQVAEConfig(**read_shape(TINY)["vq_config"], num_patches=GRID)


def vision_config() -> JanusVisionConfig:
    """Vision tower and the aligner that maps its tokens to the width of the language model."""
    return JanusVisionConfig(**read_shape(TINY)["vision_config"])


def janus_config(tokenizer: PreTrainedTokenizerFast) -> JanusConfig:
    """The whole model for its text tokenizer."""
    text = {"vocab_size": VOCABULARY, "pad_token_id": tokenizer.pad_token_id, "tie_word_embeddings": False}
    return folder.config_for(tokenizer, read_shape(TINY, {"text_config": text, "vq_config": {"num_patches": GRID}}))
