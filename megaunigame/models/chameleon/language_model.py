"""transformers' language model of Chameleon, without the image tokenizer that it holds there."""

from __future__ import annotations

from torch import nn
from transformers import ChameleonConfig, ChameleonModel
from transformers.models.chameleon import modeling_chameleon as theirs

from megaunigame.models.causal.token_embedding import TokenEmbedding


class LanguageModel(ChameleonModel):
    """Only the construction differs; the forward, from embeddings, is transformers'.

    Queries and keys are normalized, each head with its own scale and shift. Released heads of one model parallel group share
    theirs. With `swin_norm` (30B) a layer normalizes what it adds, not what it reads.
    """

    def __init__(self, config: ChameleonConfig):
        theirs.ChameleonPreTrainedModel.__init__(self, config)
        layer = theirs.ChameleonSwinDecoderLayer if config.swin_norm else theirs.ChameleonDecoderLayer
        self.embed_tokens = TokenEmbedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(layer(config, number) for number in range(config.num_hidden_layers))
        self.norm = theirs.ChameleonRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = theirs.ChameleonRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    def set_attn_implementation(self, attn_implementation: str, allow_all_kernels: bool = False) -> None:
        """Of the language model alone: for the image tokenizer, which is not in it, transformers would warn."""
        super().set_attn_implementation({"": attn_implementation}, allow_all_kernels)
