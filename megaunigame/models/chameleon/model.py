"""Chameleon: pictures are codes of an image tokenizer, codes are tokens of the vocabulary, and one language model reads and
writes both.

Sources: arXiv 2405.09818, and the repositories facebookresearch/chameleon and GAIR-NLP/anole for the sequences. transformers'
model is never called: it sets the logits of all codes to the least number, so no loss on codes can be had from it.
"""

from __future__ import annotations

from torch import nn
from transformers import ChameleonConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from megaunigame.models.causal.head import TokenHead
from megaunigame.models.causal.token_codes import TokenCodeModel
from megaunigame.models.chameleon.configuration import read_config, tensor_files
from megaunigame.models.chameleon.keys import KEYS
from megaunigame.models.chameleon.language_model import LanguageModel
from megaunigame.models.chameleon.processor import ChameleonRows
from megaunigame.models.chameleon.processor_files import export_processor, export_settings
from megaunigame.models.chameleon.sizes import SIZES
from megaunigame.models.chameleon.vq import ImageTokenizer
from megaunigame.models.weights.frozen import Frozen


class Chameleon(TokenCodeModel):
    """The trained part of a Chameleon; parameter names are those of transformers' ChameleonForConditionalGeneration.

    A code is known by its place among the tokens of codes, here and in the image tokenizer: see `code_names`.
    """

    name = "chameleon"
    groups = {
        "embedding": ("model.embed_tokens.",),
        "lm": ("model.layers.", "model.norm."),
        "head": ("lm_head.",),
    }
    sizes = SIZES
    keys = KEYS
    frozen_name = "image tokenizer"
    configuration = staticmethod(read_config)
    open_processor = ChameleonRows.from_folder
    files = staticmethod(tensor_files)
    in_transformers = True
    write_settings = staticmethod(export_settings)
    write_processor = staticmethod(export_processor)

    config: ChameleonConfig
    processor: ChameleonRows
    frozen: Frozen[ImageTokenizer]
    model: LanguageModel

    @staticmethod
    def trained_parts(config: ChameleonConfig) -> dict[str, nn.Module]:
        """transformers' language model, with an embedding and a head of ours."""
        with no_init_weights():
            return {"model": LanguageModel(config), "lm_head": TokenHead(config.hidden_size, config.vocab_size)}

    def build_frozen(self) -> ImageTokenizer:
        """The image tokenizer, its weights not loaded."""
        return ImageTokenizer(self.config.vq_config, self.processor.format.codes)

    @property
    def language_model(self) -> PreTrainedModel:
        return self.model
