"""Janus and Janus-Pro: a SigLIP tower to understand, codes of an image tokenizer to generate, one Llama for both.

The modules are transformers'; written here is how pictures are read, how codes are read and scored, and how codes are decoded.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import JanusConfig, JanusModel, PreTrainedModel
from transformers.initialization import no_init_weights

from megaunigame.attention.positions import first_token
from megaunigame.models.as_given import compute_as_given
from megaunigame.models.causal.codes import CodeModel
from megaunigame.models.causal.head import TokenHead
from megaunigame.models.janus.configuration import codes_per_image, read_config
from megaunigame.models.janus.keys import KEYS
from megaunigame.models.janus.processor import JanusProcessor
from megaunigame.models.janus.processor_files import export_processor, export_settings
from megaunigame.models.janus.sizes import SIZES
from megaunigame.models.janus.vq import ImageTokenizer
from megaunigame.models.weights.frozen import Frozen
from megaunigame.step.inputs import GenerateInputs
from megaunigame.step.requests import GENERATE, UNDERSTAND


class Janus(CodeModel):
    """The trained part of a Janus model; parameter names are those of transformers' JanusForConditionalGeneration."""

    name = "janus"
    groups = {
        "vision": ("model.vision_model.",),
        "aligner": ("model.aligner.",),
        "lm": ("model.language_model.", "lm_head."),
        "generation_embed": ("model.generation_embeddings.", "model.generation_aligner."),
        "generation_head": ("model.generation_head.",),
    }
    trained_by_default = ("aligner", "lm", "generation_embed", "generation_head")
    passes = {
        UNDERSTAND: ("vision", "aligner", "lm"),
        GENERATE: ("vision", "aligner", "lm", "generation_embed", "generation_head"),
    }
    seeing = ("vision", "aligner")
    sizes = SIZES
    keys = KEYS
    frozen_name = "image tokenizer"
    configuration = staticmethod(read_config)
    open_processor = JanusProcessor.from_folder
    in_transformers = True
    write_settings = staticmethod(export_settings)
    write_processor = staticmethod(export_processor)

    config: JanusConfig
    processor: JanusProcessor
    frozen: Frozen[ImageTokenizer]
    model: JanusModel

    @staticmethod
    def trained_parts(config: JanusConfig) -> dict[str, nn.Module]:
        """transformers' model without its image tokenizer, and the text head."""
        with no_init_weights():
            model = JanusModel(config)
            head = TokenHead(config.text_config.hidden_size, config.text_config.vocab_size)
        del model.vqmodel
        compute_as_given(model.generation_head)
        return {"model": model, "lm_head": head}

    def build_frozen(self) -> ImageTokenizer:
        """The image tokenizer, its weights not loaded."""
        return ImageTokenizer(self.config.vq_config)

    @property
    def image_tokenizer(self) -> ImageTokenizer:
        return self.frozen.module

    @property
    def language_model(self) -> PreTrainedModel:
        return self.model.language_model

    @property
    def vision_tower(self) -> PreTrainedModel:
        return self.model.vision_model

    @property
    def codes_per_image(self) -> int:
        """N."""
        return codes_per_image(self.config)

    def unreached(self, pass_name: str) -> tuple[str, ...]:
        return ("lm_head.",) if pass_name == GENERATE else ()

    # Passes

    def visual_tokens(self, images: Tensor) -> Tensor:
        """(B, I, 3, H, W) -> (B, I, N, D): tower and aligner; the tokens the language model reads."""
        features = self.model.vision_model(images.flatten(0, 1)).last_hidden_state
        return self.model.aligner(features).unflatten(0, images.shape[:2])

    def code_logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        return self.model.generation_head(hidden)

    def embed_codes(self, codes: Tensor) -> Tensor:
        """(B, N) -> (B, N, D): codes as the language model reads them."""
        return self.model.generation_aligner(self.model.generation_embeddings(codes))

    # Pictures

    @torch.no_grad()
    def encode_target(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, N) codes. No gradient."""
        return self.image_tokenizer.encode(pixels)

    def codebook(self) -> Tensor:
        """(V, C) float32."""
        return self.image_tokenizer.codebook()

    def pixels_of(self, codes: Tensor, mean: Tensor | None = None) -> Tensor:
        """(B, N) codes -> (B, 3, H, W), not clamped; with `mean` (B, N, C) rows of the codebook, the gradient is theirs."""
        tokenizer = self.image_tokenizer
        return tokenizer.decode_codes(codes) if mean is None else tokenizer.decode_mean(codes, mean)

    def unconditional(self, inputs: GenerateInputs) -> tuple[Tensor, Tensor]:
        """Pads between the first and the last token of every request, source pictures included. They are read like other
        tokens; only the padding in front is masked."""
        attention = inputs.attention
        inner = attention & ~first_token(attention)
        inner[:, -1] = False
        empty = inputs.tokens.masked_fill(inner, self.processor.pad_id)
        return self.language_model.embed_tokens(empty), attention
