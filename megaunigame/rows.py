"""Rows in and out of the inputs of a pass that is already put together."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from megaunigame.passes import IGNORE, PassInputs


def take_rows(inputs: PassInputs, at: slice) -> PassInputs:
    """The rows `at` alone."""
    tensors = {f.name: getattr(inputs, f.name) for f in dataclasses.fields(inputs)}
    taken: dict[str, Any] = {name: value[at] for name, value in tensors.items() if isinstance(value, Tensor | list)}
    return dataclasses.replace(inputs, gradient_rows=None, **taken)


def put_rows(inputs: PassInputs, at: slice, rows: PassInputs) -> PassInputs:
    """A copy of understand inputs whose rows `at` (dummies) are `rows`; terms and all other rows stay as they are.

    Sequences are padded at their end and grow where a row needs it. A gradient that hangs on `rows.images` or on
    `rows.visual_delta` is kept.
    """
    assert inputs.labels is not None and rows.labels is not None
    assert inputs.label_positions is not None and rows.label_positions is not None
    assert (
        inputs.images is not None
        and inputs.image_valid is not None
        and rows.images is not None
        and rows.image_valid is not None
    )
    assert inputs.image_slots is not None and rows.image_slots is not None
    length = max(inputs.tokens.shape[1], rows.tokens.shape[1])
    places = max(inputs.images.shape[1], rows.images.shape[1])
    labels = max(inputs.label_positions.shape[1], rows.label_positions.shape[1])
    pad_id = inputs.tokens[at][0, -1]  # a dummy row ends with padding

    def put(whole: Tensor, part: Tensor, width: int | None = None, fill: int | Tensor = 0) -> Tensor:
        if width is not None:
            whole, part = _widened(whole, width, fill), _widened(part, width, fill)
        return torch.cat([whole[: at.start], part.to(whole.dtype), whole[at.stop :]])

    segments, delta = None, None
    if inputs.segments is not None or rows.segments is not None:
        before, after = (torch.zeros_like(x.tokens) if x.segments is None else x.segments for x in (inputs, rows))
        segments = put(before, after, length)
    given = [x.visual_delta for x in (inputs, rows) if x.visual_delta is not None]
    if given:
        before, after = (
            given[0].new_zeros(len(x.tokens), places, *given[0].shape[2:]) if x.visual_delta is None else x.visual_delta
            for x in (inputs, rows)
        )
        delta = put(before, after, places)
    return dataclasses.replace(
        inputs,
        tokens=put(inputs.tokens, rows.tokens, length, pad_id),
        attention=put(inputs.attention, rows.attention, length),
        labels=put(inputs.labels, rows.labels, length, IGNORE),
        label_positions=put(inputs.label_positions, rows.label_positions, labels),
        front_padding=inputs.front_padding or rows.front_padding,
        segments=segments,
        image_slots=put(inputs.image_slots, rows.image_slots, length),
        images=put(inputs.images, rows.images, places),
        gradient_rows=_gradient_rows(inputs, at, rows),
        image_valid=put(inputs.image_valid, rows.image_valid, places),
        visual_delta=delta,
        counts=put(inputs.counts, rows.counts),
        intact=put(_intact(inputs), _intact(rows)),
        keys=[*inputs.keys[: at.start], *rows.keys, *inputs.keys[at.stop :]],
    )


def _gradient_rows(inputs: PassInputs, at: slice, rows: PassInputs) -> slice | None:
    """Where pictures require a gradient after `rows` were put in at `at`."""
    assert inputs.images is not None and rows.images is not None
    if not rows.images.requires_grad:
        return inputs.gradient_rows
    if not inputs.images.requires_grad:
        return at
    before = inputs.gradient_rows
    return None if before is None else slice(min(before.start, at.start), max(before.stop, at.stop))


def _intact(inputs: PassInputs) -> Tensor:
    return torch.ones_like(inputs.counts, dtype=torch.bool) if inputs.intact is None else inputs.intact


def _widened(tensor: Tensor, width: int, fill: int | Tensor) -> Tensor:
    """(B, w, ...) -> (B, width, ...), new places filled."""
    missing = width - tensor.shape[1]
    if not missing:
        return tensor
    new = torch.zeros(len(tensor), missing, *tensor.shape[2:], dtype=tensor.dtype, device=tensor.device) + fill
    return torch.cat([tensor, new.to(tensor.dtype)], dim=1)
