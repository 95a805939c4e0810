"""Attention over a sequence whose positions are divided among ranks (Ulysses, arXiv 2309.14509).

    in the layers    rank s has the positions s t, ..., (s + 1) t - 1 of all H heads          t = ceil(T / N)
    in attention     rank s has all T positions of the heads s H / N, ..., (s + 1) H / N - 1

Two all-to-alls change from one to the other around the attention function, which is found in transformers' table as before:
packs, taps and kernels see ordinary heads, only fewer. So a rank holds one N-th of the activations of the layers, and makes one
N-th of their operations.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from megaunigame.attention import taps
from megaunigame.parallel.ranks import Ranks
from megaunigame.parallel.shared import collect, exchange, part_of

Attend = Callable[..., tuple[Tensor, Tensor | None]]
SHARED = "shared_"


def install(language_model: PreTrainedModel) -> None:
    """Make `language_model` attend as a `Sharing` says, if its forward is given one. Its taps, inside, see heads.

    Raises ModelError when its attention cannot be intercepted.
    """
    taps.install(language_model)
    base = language_model.config._attn_implementation
    if base.startswith(SHARED):
        return
    AttentionInterface.register(SHARED + base, _shared(base))
    if base in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(SHARED + base, ALL_MASK_ATTENTION_FUNCTIONS[base])
    language_model.config._attn_implementation = SHARED + base


class Sharing:
    """One forward of the language model over a sequence of `length` positions, by all of `ranks`."""

    def __init__(self, ranks: Ranks, length: int):
        self.ranks, self.length = ranks, length
        self.each = -(-length // ranks.size)
        """t: positions of a rank; the last ones are followed by padding, which no position attends to."""

    @property
    def padding(self) -> int:
        return self.each * self.ranks.size - self.length

    def own(self, whole: Tensor) -> Tensor:
        """(1, T, D), the same on all ranks -> (1, t, D): the positions of this rank."""
        parts = F.pad(whole, (0, 0, 0, self.padding)).view(self.ranks.size, 1, self.each, whole.shape[2])
        return part_of(parts, self.ranks)

    def own_positions(self, positions: Tensor) -> Tensor:
        """(1, T) -> (1, t): of position ids."""
        return F.pad(positions, (0, self.padding)).view(self.ranks.size, self.each)[self.ranks.rank].unsqueeze(0)

    def whole(self, own: Tensor) -> Tensor:
        """(1, t, D) -> (1, T, D) on all ranks."""
        return collect(own, self.ranks).view(1, -1, own.shape[2])[:, : self.length]

    def by_heads(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(1, H, t, d), twice (1, K, t, d) -> (1, H / N, T, d), twice (1, K / N or more, T, d), in one exchange.

        Heads of keys are repeated as far as each rank needs them to have those of its queries.
        """
        repeated = key_copies(query.shape[1], key.shape[1], self.ranks.size)
        heads = [query, *(each.repeat_interleave(repeated, dim=1) for each in (key, value))]
        # (N, heads of all three for that rank, t, d)
        parts = torch.cat([each.squeeze(0).unflatten(0, (self.ranks.size, -1)) for each in heads], dim=1)
        numbers = [each.shape[1] // self.ranks.size for each in heads]
        received = exchange(parts, self.ranks).transpose(0, 1).flatten(1, 2)[:, : self.length]
        of_query, of_key, of_value = received.unsqueeze(0).split(numbers, dim=1)
        return of_query, of_key, of_value

    def by_positions(self, attended: Tensor) -> Tensor:
        """(1, T, H / N, d) -> (1, t, H, d)."""
        parts = F.pad(attended.squeeze(0), (0, 0, 0, 0, 0, self.padding)).unflatten(0, (self.ranks.size, self.each))
        return exchange(parts, self.ranks).transpose(0, 1).flatten(1, 2).unsqueeze(0)


def key_copies(heads: int, key_heads: int, ranks: int) -> int:
    """How often a head of keys, which `heads` / `key_heads` queries have in common, is repeated for `ranks` to divide them."""
    groups = heads // key_heads
    return next(copies for copies in range(1, groups + 1) if groups % copies == 0 and key_heads * copies % ranks == 0)


def _shared(base: str) -> Attend:
    """The attention function `base`, on heads instead of positions when it is given a `Sharing`."""

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        sharing: Sharing | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        # Eager attention is not in the table: every model file has its own.
        eager = vars(sys.modules[type(module).__module__]).get("eager_attention_forward")
        function = ALL_ATTENTION_FUNCTIONS.get_interface(base, eager)
        with taps.named(module.config, base):
            if sharing is None:
                return function(module, query, key, value, attention_mask, **options)
            heads = sharing.by_heads(query, key, value)
            with _grouped(module, heads[0].shape[1] // heads[1].shape[1]):
                attended, _ = function(module, *heads, attention_mask, **options)
            return sharing.by_positions(attended), None

    return attend


@contextmanager
def _grouped(module: Any, groups: int) -> Iterator[None]:
    """Queries that have one head of keys in common, which attention functions repeat by it."""
    own = module.num_key_value_groups
    module.num_key_value_groups = groups
    try:
        yield
    finally:
        module.num_key_value_groups = own
