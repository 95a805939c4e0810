"""Emu3: pictures are codes of a vision tokenizer, codes are tokens of the vocabulary, and one language model reads and
writes both. Nothing else is trained: no vision tower, no aligner, no separate head for codes.

The modules are transformers'. Sources: arXiv 2409.18869 and the official repository (baaivision/Emu3), whose sequences and
vision-only loss these are. Unlike there, codes are made inside the pass, from pixels.
"""

from __future__ import annotations

from torch import nn
from transformers import Emu3Config, Emu3TextModel, PreTrainedModel

from megaunigame.models.causal.token_codes import TokenCodeModel
from megaunigame.models.causal.token_embedding import language_model_and_head
from megaunigame.models.emu3.configuration import read_config, tensor_files
from megaunigame.models.emu3.keys import KEYS
from megaunigame.models.emu3.processor import Emu3Processor
from megaunigame.models.emu3.processor_files import export_processor, export_settings, page_for
from megaunigame.models.emu3.sizes import SIZES
from megaunigame.models.emu3.vq import VisionTokenizer
from megaunigame.models.weights.frozen import Frozen


class Emu3(TokenCodeModel):
    """The trained part of an Emu3; parameter names are those of transformers' Emu3ForConditionalGeneration."""

    name = "emu3"
    groups = {
        "embedding": ("model.text_model.embed_tokens.",),
        "lm": ("model.text_model.layers.", "model.text_model.norm."),
        "head": ("lm_head.",),
    }
    sizes = SIZES
    keys = KEYS
    frozen_name = "vision tokenizer"
    configuration = staticmethod(read_config)
    open_processor = Emu3Processor.from_folder
    files = staticmethod(tensor_files)
    in_transformers = True
    write_settings = staticmethod(export_settings)
    write_processor = staticmethod(export_processor)

    config: Emu3Config
    processor: Emu3Processor
    frozen: Frozen[VisionTokenizer]
    model: nn.ModuleDict

    @classmethod
    def usage_page(cls, path: str) -> str:
        return page_for(read_config(path), super().usage_page(path))

    @staticmethod
    def trained_parts(config: Emu3Config) -> dict[str, nn.Module]:
        """transformers' language model, with an embedding and a head of ours."""
        language_model, head = language_model_and_head(Emu3TextModel, config.text_config)
        return {"model": nn.ModuleDict({"text_model": language_model}), "lm_head": head}

    def build_frozen(self) -> VisionTokenizer:
        """The vision tokenizer, its weights not loaded."""
        return VisionTokenizer(self.config.vq_config)

    @property
    def language_model(self) -> PreTrainedModel:
        return self.model["text_model"]  # type: ignore[return-value]
