"""Attention and rotary positions of BAGEL's rows.

A picture with its begin and end token is a block: everything in a block sees all of it and what comes before, and a block is
one rotary position. Text is causal and counts up. Latent tokens are not in the token sequence: they belong between the begin
and the end token of their block, which are next to each other there, and come after the sequence.

So every element has a first and a last index into the token sequence: both its own for text, those of begin and end token in
a block. A query sees a key whose first index is not after its own last one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from megaunigame.models.causal.masks import segment_positions


class Spans(NamedTuple):
    """Of the elements of rows, (B, S) each."""

    first: Tensor
    """int64: index of the begin token of a block, its own index for text."""
    last: Tensor
    """int64: index of the end token of a block, its own index for text."""
    begins: Tensor
    """bool: begin tokens of blocks."""
    inside: Tensor
    """bool: tokens of blocks, begin and end token included."""


def spans_of(tokens: Tensor, attention: Tensor, begin: int, end: int) -> Spans:
    """Of token sequences (B, S); `begin`, `end`: the tokens around a picture. Padding is text."""
    index = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    begins, ends = (tokens == begin) & attention, (tokens == end) & attention
    inside = begins.long().cumsum(1) > ends.long().cumsum(1) - ends.long()
    start = torch.where(begins, index, -1).cummax(1).values
    stop = torch.where(ends, index, tokens.shape[1]).flip(1).cummin(1).values.flip(1)
    return Spans(torch.where(inside, start, index), torch.where(inside, stop, index), begins, inside)


def sees(spans: Spans) -> Tensor:
    """(B, S, S) bool: whether element q sees element k, padding aside."""
    return spans.first.unsqueeze(1) <= spans.last.unsqueeze(2)


def positions_of(spans: Spans, attention: Tensor, segments: Tensor | None = None) -> Tensor:
    """(B, S) int64 rotary positions of tokens; of independent segments (B, S) each as if it were the only one."""
    counted = attention & (~spans.inside | spans.begins)
    if segments is None:
        return (counted.long().cumsum(1) - 1).clamp_min(0)
    return segment_positions(counted, segments)


def source_blocks(spans: Spans, attention: Tensor, sources: int) -> tuple[Tensor, Tensor]:
    """Index of the begin token of the latent blocks of requests but the last, which is drawn, and whether they are read;
    (B, sources) each.

    A latent block is a begin token that an end token follows at once. One that a row does not have is at index 0, not read.
    """
    index = torch.arange(spans.first.shape[1], device=spans.first.device)
    latent = spans.begins & (spans.last == index + 1)
    order, number = latent.long().cumsum(1), torch.arange(1, sources + 1, device=index.device)
    at = (latent.unsqueeze(1) & (order.unsqueeze(1) == number.view(1, -1, 1))).to(torch.uint8).argmax(2)
    return at, (number < order[:, -1:]) & attention.gather(1, at)


class Layout(NamedTuple):
    """How a row with latent tokens is read: its token sequence (S), then its latent tokens (G)."""

    mask: Tensor
    """(B, S + G, S + G) bool: whether q sees k; every element sees itself."""
    positions: Tensor
    """(B, S + G) int64."""


def drawing_layout(
    tokens: Tensor, attention: Tensor, sources: int, latent_tokens: int, drawn_tokens: int, begin: int, end: int, lost: int
) -> Layout:
    """Of requests (B, S) that end with begin and end token of the picture to draw.

    After them come `latent_tokens` for each of `sources` source pictures, which belong into the latent blocks of a row in their
    order, and `drawn_tokens` of the picture to draw. A row may have fewer latent blocks. `attention` (B, S): tokens that are
    read; a block that is not read keeps its place in the order. `lost`: a token that counts as a position where it is outside
    of a block, and is not read.
    """
    spans = spans_of(tokens, torch.ones_like(attention), begin, end)
    positions = positions_of(spans, attention)
    rows, length = tokens.shape
    at_end = torch.full((rows, drawn_tokens), length - 1, device=tokens.device)
    firsts, lasts, places, read = [at_end - 1], [at_end], [positions[:, -2:-1].expand(-1, drawn_tokens)], [at_end > 0]
    if sources:
        at, there = source_blocks(spans, attention, sources)
        block = at, spans.last.gather(1, at), positions.gather(1, at), there
        first, last, place, known = (each.repeat_interleave(latent_tokens, 1) for each in block)
        firsts, lasts, places, read = [first, *firsts], [last, *lasts], [place, *places], [known, *read]
    whole = spans._replace(first=torch.cat([spans.first, *firsts], 1), last=torch.cat([spans.last, *lasts], 1))
    keys = torch.cat([attention & ((tokens != lost) | spans.inside), *read], 1)
    itself = torch.eye(keys.shape[1], dtype=torch.bool, device=tokens.device)
    return Layout((sees(whole) & keys.unsqueeze(1)) | itself, torch.cat([positions, *places], 1))


def without_last_text(tokens: Tensor, attention: Tensor, bos: int) -> Tensor:
    """(B, S) bool: `attention` without the last text of requests, from its first token to the begin token of the picture."""
    index = torch.arange(tokens.shape[1], device=tokens.device)
    start = torch.where((tokens == bos) & attention, index, -1).amax(1, keepdim=True)
    return attention & ~((index >= start) & (start >= 0) & (index < tokens.shape[1] - 2))


def without_sources(tokens: Tensor, attention: Tensor, begin: int, end: int) -> Tensor:
    """(B, S) bool: `attention` without the source pictures of requests."""
    inside = spans_of(tokens, attention, begin, end).inside
    return attention & ~F.pad(inside[:, :-2], (0, 2))
