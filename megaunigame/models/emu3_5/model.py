"""Emu3.5 and Emu3.5-Image: pictures are codes of a vision tokenizer, codes are tokens of the vocabulary, and one language model
of Qwen3's layout reads and writes both. Nothing else is trained.

The language model is transformers'. Sources: arXiv 2510.26583 and the official repository (baaivision/Emu3.5), whose sequences
these are. Codes are made inside the pass, from pixels. Dropout of the release acts on residuals and embeddings too; here, as in
transformers, on attention alone.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen3Model

from megaunigame.models.causal.token_codes import TokenCodeModel
from megaunigame.models.causal.token_embedding import language_model_and_head
from megaunigame.models.emu3_5.configuration import TOKENIZER_FOLDER, TOKENIZER_HINT, Emu3p5Config, read_config
from megaunigame.models.emu3_5.folder import export_processor, export_settings
from megaunigame.models.emu3_5.keys import KEYS
from megaunigame.models.emu3_5.processor import Emu3p5Processor
from megaunigame.models.emu3_5.sizes import SIZES
from megaunigame.models.emu3_5.vq import VisionTokenizer
from megaunigame.models.weights.frozen import Frozen
from megaunigame.step.inputs import GenerateInputs


class Emu3p5(TokenCodeModel):
    """The trained part of an Emu3.5; parameter names are the official ones."""

    name = "emu3_5"
    groups = {"embedding": ("model.embed_tokens.",), "lm": ("model.layers.", "model.norm."), "head": ("lm_head.",)}
    sizes = SIZES
    keys = KEYS
    frozen_name = "vision tokenizer"
    frozen_folder = TOKENIZER_FOLDER
    frozen_hint = TOKENIZER_HINT
    configuration = staticmethod(read_config)
    open_processor = Emu3p5Processor.from_folder
    write_settings = staticmethod(export_settings)
    write_processor = staticmethod(export_processor)

    config: Emu3p5Config
    processor: Emu3p5Processor
    frozen: Frozen[VisionTokenizer]
    model: Qwen3Model

    @staticmethod
    def trained_parts(config: Emu3p5Config) -> dict[str, nn.Module]:
        """transformers' language model, with an embedding and a head of ours."""
        language_model, head = language_model_and_head(Qwen3Model, config.text_config)
        return {"model": language_model, "lm_head": head}

    def build_frozen(self) -> VisionTokenizer:
        """The vision tokenizer, its weights not loaded."""
        return VisionTokenizer(self.config.vq_config)

    @property
    def language_model(self) -> PreTrainedModel:
        return self.model

    def unconditional(self, inputs: GenerateInputs) -> tuple[Tensor, Tensor]:
        """Embedded requests (B, P, D) without task and text, and their attention (B, P), padded like `inputs`; the source of
        each row stays."""
        without = self.processor.without_condition(inputs)
        return self.embed(without), without.attention
