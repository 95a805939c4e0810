"""Attention shares measured inside the layers, without keeping an attention map.

    I_l(b) = mean over heads h, mean over q in Q_b, sum over k in K_b of A_l[b, h, q, k]      A: attention after the softmax

(arXiv 2511.22663, eq. 1). A tapped model attends as before. In addition, a chosen layer computes the rows Q of its map from its
queries and keys, chunk by chunk, and keeps one number per row of the batch. The backward pass recomputes the chunks.

The hook is transformers' table of attention functions: a tapped model uses a registered function that calls the original
one. No model code is changed, and every model that uses that table can be tapped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from megaunigame.attention.packs import Pack
from megaunigame.attention.plain import PLAIN
from megaunigame.attention.queries import Queries
from megaunigame.errors import ModelError
from megaunigame.parallel.ranks import Ranks
from megaunigame.parallel.shared import mean
from megaunigame.step.inputs import AttentionShares, Taps

TAPPED = "tapped_"
CHUNK_ELEMENTS = 2**24
"""Elements of a map (rows x heads x queries x keys) per chunk: 64 MiB, with two or three such tensors alive at a time."""


def install(language_model: PreTrainedModel) -> None:
    """Make `language_model` measure what a `Tap` requests. Raises ModelError when its attention cannot be intercepted."""
    base = language_model.config._attn_implementation
    if TAPPED in base:
        return
    name = type(language_model).__name__
    known = base == PLAIN or base in ALL_MASK_ATTENTION_FUNCTIONS
    if not (known and language_model._can_set_attn_implementation()):
        raise ModelError(
            f"The attention of {name} (model.attention={base}) cannot be tapped: it does not go through transformers' table of "
            f"attention functions. Type model.attention=sdpa or eager, or leave out the objective that measures attention."
        )
    AttentionInterface.register(TAPPED + base, _tapped(base))
    if base != PLAIN:
        AttentionMaskInterface.register(TAPPED + base, ALL_MASK_ATTENTION_FUNCTIONS[base])
    language_model.config._attn_implementation = TAPPED + base


def untapped(implementation: str) -> str:
    """The attention implementation a model had before it was tapped."""
    return implementation.rpartition(TAPPED)[2]


class Tap:
    """One forward of the language model: what to measure, and the measurements."""

    def __init__(self, taps: Taps, queries: Queries, keys: Tensor, first: Tensor):
        """`keys`, `first` (B, S) bool: sets of positions. Queries may be a random subset: the mean over them is unbiased."""
        self.taps = taps
        self.found: dict[int, tuple[Tensor, Tensor]] = {}
        self.queries = queries
        self.weights = queries.counted / queries.counted.sum(1, keepdim=True).clamp_min(1)
        """(B, R) float32: 0 for queries that do not count."""
        self.keys = keys.float()

        self.first = first.float().argmax(1)
        """(B,): position of the first token."""
        self.ranks: Ranks | None = None
        """Those that share the rows: each has measured some of the heads. None: this rank has measured all."""

    def measure(self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> None:
        """Called by the attention function of each tapped layer.

        With gradient checkpointing it is called again in the backward, for the same result. That one is not kept: its graph
        would hold queries and keys of every layer until the whole backward is done.
        """
        sets = (self.queries.positions, self.weights, self.keys, self.first, self.queries.reach)
        measured = _Shares.apply(query, key, mask, *sets, scaling)
        self.found.setdefault(layer, measured)

    def shares(self) -> AttentionShares:
        """Raises ModelError when a tapped layer was not measured: the model does not pass the tap on."""
        missing = [layer for layer in self.taps.layers if layer not in self.found]
        if missing:
            raise ModelError(
                f"Attention of layer {missing[0]} could not be tapped; layers {sorted(self.found)} were. The model of this "
                "family does not hand its options on to the attention function."
            )
        keys, first = (torch.stack(each) for each in zip(*(self.found[layer] for layer in self.taps.layers), strict=True))
        if self.ranks is not None:  # a share is a mean over the heads, of which all ranks have as many
            keys, first = mean(keys, self.ranks), mean(first, self.ranks)
        return AttentionShares(keys, first)


class PackedTap:
    """A tap of a pass that is read as a pack: it measures rows."""

    def __init__(self, tap: Tap, pack: Pack, mask: Tensor):
        """`mask`: (B, S) positions that count, of causal rows, or (B, 1, S, S): pairs that see each other; bool."""
        self.tap, self.pack, self.mask = tap, pack, mask

    @property
    def taps(self) -> Taps:
        """Which layers are tapped."""
        return self.tap.taps

    def measure(self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> None:
        """As `Tap.measure`, with queries and keys (1, heads, T, d) of a pack, whose `mask` is None."""
        queries, keys = (self.pack.rows(heads.transpose(1, 2)).transpose(1, 2) for heads in (query, key))
        self.tap.measure(layer, queries, keys, self.mask, scaling)


def _tapped(base: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The attention function `base`, which also measures when given a tap. torch.compile ends a graph before it."""

    @torch.compiler.disable
    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        tap: Tap | PackedTap | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        # Eager attention is not in the table: every model file has its own.
        eager = vars(sys.modules[type(module).__module__]).get("eager_attention_forward")
        function = ALL_ATTENTION_FUNCTIONS.get_interface(base, eager)
        with named(module.config, base):  # flash attention looks its kernel up by this name
            result = function(module, query, key, value, attention_mask, **options)
        layer: Any = getattr(module, "layer_idx", None)
        if tap is not None and layer in tap.taps.layers:
            tap.measure(layer, query, key, attention_mask, options["scaling"])
        return result

    return attend


@contextmanager
def named(config: PreTrainedConfig, implementation: str) -> Iterator[None]:
    """Inside, the config names another attention implementation."""
    own = config._attn_implementation
    config._attn_implementation = implementation
    try:
        yield
    finally:
        config._attn_implementation = own


class _Shares(torch.autograd.Function):
    """Shares of attention on the keys and, without gradient, on the first token: (B,) each.

    Only queries, keys and the sets are saved for the backward pass. With p = softmax(s), m = sum_k c_k p_k and the gradient
    g of m:  dL/ds_k = g p_k (c_k - m).
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        positions: Tensor,
        weights: Tensor,
        keys: Tensor,
        first: Tensor,
        reach: list[tuple[int, int]],
        scaling: float,
    ) -> tuple[Tensor, Tensor]:
        """query (B, H, S, d), key (B, H or fewer, S, d); mask as the attention function gets it: None (causal), (B, S) bool,
        or (B, 1, S, S), additive or bool (True: seen)."""
        ctx.save_for_backward(query, key, mask, positions, weights, keys)
        ctx.reach, ctx.scaling = reach, scaling
        share, at_first = weights.new_zeros(2, len(query)).unbind()
        for part, clear, seen in _chunks(query, reach):
            attention = _attention(query, key, mask, positions[:, part], clear, seen, scaling)[0]
            share += (_given(attention, keys).mean(1) * weights[:, part]).sum(1)
            # A query before the first token is padding, with weight 0.
            column = first.clamp_max(seen - 1).view(-1, 1, 1, 1).expand(*attention.shape[:3], 1)
            at_first += (attention.gather(3, column).squeeze(3).mean(1) * weights[:, part]).sum(1)
        ctx.mark_non_differentiable(at_first)
        return share, at_first

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, mask, positions, weights, keys = ctx.saved_tensors
        heads, groups = query.shape[1], query.shape[1] // key.shape[1]
        d_query, d_key = torch.zeros_like(query), torch.zeros_like(key, dtype=torch.float32)
        for part, clear, seen in _chunks(query, ctx.reach):
            attention, chosen = _attention(query, key, mask, positions[:, part], clear, seen, ctx.scaling)
            mean = _given(attention, keys).unsqueeze(-1)
            d_scores = attention.mul_(keys[:, None, None, :seen] - mean).to(key.dtype)
            # Heads of one group share their keys and are consecutive.
            d_scores = d_scores.unflatten(1, (-1, groups)).flatten(2, 3)
            scale = ((gradient * ctx.scaling / heads).unsqueeze(1) * weights[:, part])[:, None, :, None].to(key.dtype)
            scaled = (chosen * scale).unflatten(1, (-1, groups)).flatten(2, 3)
            d_key[:, :, :seen] += (d_scores.transpose(2, 3) @ scaled).float()
            d_chosen = (d_scores @ key[:, :, :seen]).unflatten(2, (groups, -1)).flatten(1, 2) * scale
            d_query.scatter_(2, _rows(positions[:, part], query), d_chosen)
        return d_query, d_key.to(key.dtype), None, None, None, None, None, None, None


def _given(attention: Tensor, keys: Tensor) -> Tensor:
    """(B, H, q, seen) attention -> (B, H, q): the attention on `keys` (B, S)."""
    # Row by row, because a batch of products with one vector each is slow on CPUs.
    return torch.stack([maps @ wanted[: maps.shape[-1]] for maps, wanted in zip(attention, keys, strict=True)])


def _attention(
    query: Tensor, key: Tensor, mask: Tensor | None, positions: Tensor, clear: int, seen: int, scaling: float
) -> tuple[Tensor, Tensor]:
    """Attention (B, H, q, seen) float32 of the queries at `positions` (B, q), and these queries (B, H, q, d).

    Causal order lets every query see the first `clear` of the `seen` keys.
    """
    chosen = query.gather(2, _rows(positions, query))
    heads, groups = key.shape[1], query.shape[1] // key.shape[1]
    grouped = chosen.unflatten(1, (heads, groups)).flatten(2, 3).flatten(0, 1)
    # With beta=0 the first operand is not read: baddbmm only multiplies and scales.
    unread = grouped.new_zeros(1, 1, 1)
    products = torch.baddbmm(unread, grouped, key[:, :, :seen].flatten(0, 1).transpose(1, 2), beta=0, alpha=scaling)
    scores = products.view(*chosen.shape[:3], seen)
    least = torch.finfo(scores.dtype).min
    if mask is not None and mask.dim() == 4:
        rows = torch.arange(len(query), device=query.device).unsqueeze(1)
        of_queries = mask.expand(len(query), 1, -1, -1)[rows, 0, positions][:, None, :, :seen]
        if mask.dtype == torch.bool:
            scores.masked_fill_(~of_queries, least)
        else:
            scores += of_queries
    else:
        future = torch.arange(clear, seen, device=query.device) > positions.unsqueeze(-1)
        scores[..., clear:].masked_fill_(future.unsqueeze(1), least)
        if mask is not None:
            scores.masked_fill_(~mask[:, None, None, :seen].bool(), least)
    return scores.softmax(-1, dtype=torch.float32), chosen


def _rows(positions: Tensor, of: Tensor) -> Tensor:
    """(B, q) -> (B, H, q, d): index into the third dimension of `of`."""
    return positions[:, None, :, None].expand(-1, of.shape[1], -1, of.shape[3])


def _chunks(query: Tensor, reach: list[tuple[int, int]]) -> Iterator[tuple[slice, int, int]]:
    """Consecutive queries with at most `CHUNK_ELEMENTS` elements of the map; numbers of keys that all of them, and any, see."""
    rows = max(1, CHUNK_ELEMENTS // (query.shape[0] * query.shape[1] * query.shape[2]))
    for first in range(0, len(reach), rows):
        part = slice(first, min(first + rows, len(reach)))
        clear, seen = zip(*reach[part], strict=True)
        yield part, min(clear), max(seen)
