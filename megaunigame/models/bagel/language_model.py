"""A Qwen2 with two sets of weights: text and the tokens of seen pictures go through one, latent tokens through the other.

Attention is joint. The two kinds of tokens are kept apart, (B, S, D) and (B, G, D), and are only joined as queries, keys and
values: where an element is in a row is said by its position and by the mask, so no element is moved to its place. Without
latent tokens only the first set is used; which sets a pass uses never depends on its rows.

Source: arXiv 2505.14683 (mixture of transformers). Norms, rotary embedding and MLP are transformers'; its table of attention
functions is used, so attention can be measured.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2Config
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2MLP,
    Qwen2PreTrainedModel,
    Qwen2RMSNorm,
    Qwen2RotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from megaunigame.models.causal.token_embedding import TokenEmbedding

DRAWING = "_moe_gen"
"""Suffix of the names of the second set."""
BOTH = ("", DRAWING)


class JointAttention(nn.Module):
    """Attention of all elements of a row; every set of weights makes queries, keys and values of its own elements."""

    o_proj: nn.Linear
    o_proj_moe_gen: nn.Linear

    def __init__(self, config: Qwen2Config, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx, self.is_causal = config, layer_idx, True
        width, self.head_dim = config.hidden_size, config.hidden_size // config.num_attention_heads
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        inner, shared = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        for kind in BOTH:
            self.add_module(f"q_proj{kind}", nn.Linear(width, inner))
            self.add_module(f"k_proj{kind}", nn.Linear(width, shared))
            self.add_module(f"v_proj{kind}", nn.Linear(width, shared))
            self.add_module(f"o_proj{kind}", nn.Linear(inner, width, bias=False))
            self.add_module(f"q_norm{kind}", Qwen2RMSNorm(self.head_dim, eps=config.rms_norm_eps))
            self.add_module(f"k_norm{kind}", Qwen2RMSNorm(self.head_dim, eps=config.rms_norm_eps))

    def forward(
        self,
        tokens: Tensor,
        latents: Tensor | None,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: Cache | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(B, S, D) and (B, G, D) or None -> the same, with the maps (B, H, S + G, S + G) of eager attention between them."""
        query, key, value = self._projected(tokens, "")
        if latents is not None:
            pairs = zip((query, key, value), self._projected(latents, DRAWING), strict=True)
            query, key, value = (torch.cat(pair, 2) for pair in pairs)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        seen, maps = attend(self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **options)
        seen = seen.flatten(2)
        read = self.o_proj(seen[:, : tokens.shape[1]])
        drawn = None if latents is None else self.o_proj_moe_gen(seen[:, tokens.shape[1] :])
        return read, maps, drawn

    def _projected(self, hidden: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor]:
        """(B, S, D) -> queries, keys and values (B, heads, S, d), the first two normalized."""
        heads = (
            getattr(self, f"{letter}_proj{kind}")(hidden).unflatten(2, (-1, self.head_dim)).transpose(1, 2) for letter in "qkv"
        )
        query, key, value = heads
        return getattr(self, f"q_norm{kind}")(query), getattr(self, f"k_norm{kind}")(key), value


class Layer(GradientCheckpointingLayer):
    """(B, S, D) and (B, G, D) or None -> the same."""

    def __init__(self, config: Qwen2Config, layer_idx: int):
        super().__init__()
        self.self_attn = JointAttention(config, layer_idx)
        for kind in BOTH:
            self.add_module(f"mlp{kind}", Qwen2MLP(config))
            for norm in ("input_layernorm", "post_attention_layernorm"):
                self.add_module(norm + kind, Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps))

    def forward(self, tokens: Tensor, latents: Tensor | None, **options: Any) -> tuple[Tensor, Tensor | None]:
        drawing = None if latents is None else self.input_layernorm_moe_gen(latents)
        read, _, drawn = self.self_attn(self.input_layernorm(tokens), drawing, **options)
        tokens = tokens + read
        tokens = tokens + self.mlp(self.post_attention_layernorm(tokens))
        if latents is not None:
            assert drawn is not None
            latents = latents + drawn
            latents = latents + self.mlp_moe_gen(self.post_attention_layernorm_moe_gen(latents))
        return tokens, latents


class LanguageModel(Qwen2PreTrainedModel):
    """The decoder without its head."""

    _no_split_modules = ["Layer"]
    _can_record_outputs: dict[str, Any] = {}

    def __init__(self, config: Qwen2Config):
        super().__init__(config)
        self.embed_tokens = TokenEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, number) for number in range(config.num_hidden_layers))
        for kind in BOTH:
            self.add_module(f"norm{kind}", Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps))
        self.rotary_emb = Qwen2RotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        latents: Tensor | None = None,
        **options: Any,
    ) -> BaseModelOutputWithPast:
        """(B, S, D) embedded tokens, and (B, G, D) embedded latent tokens after them -> hidden states after the final norm.

        Of the tokens (B, S, D); with `latents`, of these alone (B, G, D): nothing is predicted from the tokens then.
        `attention_mask` (B, 1, Q, K), additive, or None for causal; `position_ids` (B, S + G), None: counted.
        """
        if position_ids is None:
            past = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = past + torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device).unsqueeze(0)
        embedding = self.rotary_emb(inputs_embeds, position_ids)
        tokens = inputs_embeds
        for layer in self.layers:
            tokens, latents = layer(
                tokens,
                latents,
                position_embeddings=embedding,
                attention_mask=attention_mask,
                past_key_values=past_key_values if use_cache else None,
                **options,
            )
        hidden = self.norm(tokens) if latents is None else self.norm_moe_gen(latents)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values if use_cache else None)
