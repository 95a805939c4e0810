"""The trained modules of an Emu3: transformers' language model, with an embedding and a head of ours."""

from __future__ import annotations

from torch import nn
from transformers import Emu3Config, Emu3TextModel
from transformers.initialization import no_init_weights

from megaunigame.models.causal.head import TokenHead
from megaunigame.models.emu3.token_embedding import TokenEmbedding


def trained_parts(config: Emu3Config) -> dict[str, nn.Module]:
    """Children of the model by name, their weights not initialised; built on the device of the surrounding context."""
    text = config.text_config
    with no_init_weights():
        language_model = Emu3TextModel(text)
        language_model.embed_tokens = TokenEmbedding(text.vocab_size, text.hidden_size, text.pad_token_id)
        head = TokenHead(text.hidden_size, text.vocab_size)
    return {"model": nn.ModuleDict({"text_model": language_model}), "lm_head": head}
