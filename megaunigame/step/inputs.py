"""Tensors of a pass: its inputs and its outputs.

Shape legend, used in every docstring of this package::

    B  rows of one pass in one micro-step of one rank
    S  sequence length after padding
    I  source images per row (>= 1 whenever the pass takes images)
    N  visual tokens of one image
    D  width of the language model
    V  codes of the image tokenizer

An objective asks for rows (:class:`RowRequest`) and makes a neutral row of a decoded sample (:class:`UnderstandRow` or
:class:`GenerateRow`), the family's processor collates rows to tensors (:class:`UnderstandInputs` or :class:`GenerateInputs`),
and the model returns one loss sum per row (:class:`UnderstandOutput` or :class:`GenerateOutput`). All rows of a pass are in
one forward, so the number and the order of forwards depend on the plan and never on the data: this keeps the ranks in lockstep
under ZeRO-3.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from megaunigame.step.requests import GENERATE, UNDERSTAND

IGNORE = -100


@dataclass(frozen=True)
class Taps:
    """Which attention of the language model a pass measures, from queries Q to keys K.

    understand: from the answer tokens of all turns to the image tokens; generate: from the tokens of the generated image,
    without the last (nothing follows it), to the text before it.
    """

    layers: tuple[int, ...]
    """Indices of the layers, the first is 0."""
    queries: int = 0
    """At most this many queries of each row, drawn at random (the mean stays unbiased); 0: all."""
    exclude_bos: bool = False
    """Exclude the first token of a row (an attention sink) from the keys."""
    compat: bool = False
    """Use the keys of the released code: begin-of-image to the last image token but one; text without its last token."""


class AttentionShares(NamedTuple):
    """Attention that the queries of each row give to its keys, per tapped layer: mean over heads and queries, in [0, 1]."""

    keys: Tensor
    """(L, B) float32; differentiable. Undefined for rows without queries or keys."""
    first: Tensor
    """(L, B) float32: the same to the first token of the row alone."""


InputsT = TypeVar("InputsT", bound="PassInputs")


@dataclass(kw_only=True)
class PassInputs:
    """The rows of one pass, as tensors: what both passes have. Row b belongs to loss term `terms[b]`."""

    pass_name: ClassVar[str]
    tokens: Tensor
    """(B, S) int64."""
    attention: Tensor
    """(B, S) bool, False at padding."""
    terms: Tensor
    """(B,) int64: index into `StepPlan.terms`."""
    counts: Tensor
    """(B,) float32: loss positions of the row; 0 for a dummy row."""
    image_positions: Tensor
    """(B, S) bool: positions replaced, in order, by the visual tokens of the row's valid images."""
    front_padding: bool = True
    """False: no padding comes before a token, so a plain causal mask hides all padding. Known on the host, where the rows are
    made; True is always safe."""
    lengths: list[int] = field(default_factory=list)
    """Tokens of each row, which are those in `attention`, known on the host; empty: not known."""
    intact: Tensor | None = None
    """(B,) bool: False for a row whose text was truncated or whose condition was dropped; None: all are intact."""
    cut: Tensor | None = None
    """(B,) bool: some text of the row was cut, or a turn left out, to fit `model.max_length`; None: of no row."""
    escaped: Tensor | None = None
    """(B,) int64: control tokens that were written in the texts of the row, and stayed text; None: in no row."""
    taps: Taps | None = None
    """Attention to measure; None: none."""
    keys: list[str] = field(default_factory=list)
    """Sample key per row: in messages, and what noise is drawn from in eval mode."""
    texts: list[tuple[str, str]] = field(default_factory=list)
    """Per row, for filters and reports: the first question and its answer, or the prompt and ""; ("", "") for dummies.
    Empty when rows were put in."""

    @property
    def coded(self) -> list[bool]:
        """Per row: whether what the pass would encode first has stored codes; empty: none has."""
        return []

    def to(self: InputsT, device: torch.device) -> InputsT:
        """A copy with every tensor on `device`."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return dataclasses.replace(self, **moved)


@dataclass(kw_only=True)
class UnderstandInputs(PassInputs):
    """Images and conversations; the loss falls on the answers."""

    pass_name = UNDERSTAND
    labels: Tensor
    """(B, S) int64, `IGNORE` where no loss falls."""
    label_positions: Tensor
    """(B, P) int64: positions of the labels of each row, ascending, then 0 (see `megaunigame.step.labels`)."""
    images: Tensor
    """(B, I, 3, H, W) float32, normalized as the understanding path expects."""
    image_valid: Tensor
    """(B, I) bool: False marks an unused image."""
    segments: Tensor | None = None
    """(B, S) int64: 0 = shared prefix, k = k-th independent turn, which sees the prefix and itself only. None: plain causal."""
    source_codes: Tensor | None = None
    """(B, I, N) int64: stored codes of `images`, in families that read codes; None: of no row."""
    source_coded: list[bool] = field(default_factory=list)
    """Per row, when `source_codes` are given: whether they hold its images. Other rows are encoded in the pass."""
    visual_delta: Tensor | None = None
    """(B, I, N, D) float32: added to the visual tokens of `images` before the language model reads them."""
    gradient_rows: slice | None = None
    """When `images` require a gradient: the rows whose pictures do; None: any of them may. Known on the host."""

    @property
    def coded(self) -> list[bool]:
        """Rows whose source pictures have stored codes."""
        return self.source_coded


@dataclass(kw_only=True)
class GenerateInputs(PassInputs):
    """Requests for pictures, and the pictures."""

    pass_name = GENERATE
    targets: Tensor
    """(B, 3, H, W) float32 in [-1, 1]: the pictures to generate."""
    images: Tensor | None = None
    """(B, I, 3, H, W) float32: source images, as in `UnderstandInputs`; None: the pass takes none."""
    image_valid: Tensor | None = None
    """(B, I) bool; given with `images`."""
    source_codes: Tensor | None = None
    """(B, I, N) int64: as in `UnderstandInputs`."""
    source_pixels: Tensor | None = None
    """(B, I, 3, H, W) float32 in [-1, 1]: source images as the frozen tokenizer encodes them, in families that read both."""
    source_coded: list[bool] = field(default_factory=list)
    """As in `UnderstandInputs`."""
    target_codes: Tensor | None = None
    """(B, N) int64: stored codes of `targets`; None: of no row."""
    target_coded: list[bool] = field(default_factory=list)
    """Per row, when `target_codes` are given: whether they hold its target. Other rows are encoded in the pass."""
    source_gradient: Tensor | None = None
    """(B,) float32: factor on the gradient into the visual tokens of the row; None: 1 everywhere."""
    emphasis: Tensor | None = None
    """(B, H, W) float32, positive: weight of the loss at each pixel of the target, relative to the others; None: all alike."""

    @property
    def coded(self) -> list[bool]:
        """Rows whose targets have stored codes."""
        return self.target_coded


class UnderstandOutput(NamedTuple):
    """Result of an understand pass. A named tuple: the engine hooks the tensors of tuples, not those of dataclasses."""

    loss_sum: Tensor
    """(B,) float32: summed (not averaged) loss of each row over its loss positions; 0 for dummy rows."""
    predictions: Tensor | None = None
    """(B, S) int64: greedy token predicted *for* each position; only when asked."""
    attention: AttentionShares | None = None
    """What `PassInputs.taps` asked for."""
    right: Tensor | None = None
    """(B,) bool: whether the likeliest token is the label at every loss position; True for dummy rows."""


class GenerateOutput(NamedTuple):
    """Result of a generate pass."""

    loss_sum: Tensor
    """(B,) float32: as in `UnderstandOutput`."""
    hidden: Tensor
    """(B, N, D): post-LM visual tokens that predict the target picture."""
    target: Tensor
    """Codes (B, N) or latents."""
    predictions: Tensor | None = None
    """(B, N) int64: greedy codes; only when asked, in families with codes."""
    attention: AttentionShares | None = None
    """What `PassInputs.taps` asked for."""


PassOutput = UnderstandOutput | GenerateOutput


def of_kind(kind: type[InputsT], inputs: PassInputs) -> InputsT:
    """`inputs`, known by the plan to be of this kind. Raises TypeError when they are not."""
    if not isinstance(inputs, kind):
        raise TypeError(f"Expected rows of the {kind.pass_name} pass, got {type(inputs).__name__}.")
    return inputs


def take_rows(inputs: InputsT, at: slice) -> InputsT:
    """The rows `at` alone."""
    taken: dict[str, Any] = {name: value[at] for name, value in vars(inputs).items() if isinstance(value, Tensor | list)}
    if isinstance(inputs, UnderstandInputs):
        taken["gradient_rows"] = None
    return dataclasses.replace(inputs, **taken)


def put_rows(inputs: UnderstandInputs, at: slice, rows: UnderstandInputs) -> UnderstandInputs:
    """A copy of `inputs` whose rows `at` (dummies) are `rows`; terms and all other rows stay as they are.

    Sequences are padded at their end and grow if a row needs it. Gradients through `rows.images` and `rows.visual_delta` are
    kept.
    """
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
    codes, coded = None, []
    stored = [x.source_codes for x in (inputs, rows) if x.source_codes is not None]
    if stored:
        before, after = (
            stored[0].new_zeros(len(x.tokens), places, stored[0].shape[2]) if x.source_codes is None else x.source_codes
            for x in (inputs, rows)
        )
        codes = put(before, after, places)
        coded = [*_coded(inputs)[: at.start], *_coded(rows), *_coded(inputs)[at.stop :]]
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
        lengths=_lengths(inputs, at, rows),
        segments=segments,
        image_positions=put(inputs.image_positions, rows.image_positions, length),
        images=put(inputs.images, rows.images, places),
        gradient_rows=_gradient_rows(inputs, at, rows),
        image_valid=put(inputs.image_valid, rows.image_valid, places),
        source_codes=codes,
        source_coded=coded,
        visual_delta=delta,
        counts=put(inputs.counts, rows.counts),
        intact=put(_intact(inputs), _intact(rows)),
        cut=put(_or_zeros(inputs, inputs.cut, torch.bool), _or_zeros(rows, rows.cut, torch.bool)),
        escaped=put(_or_zeros(inputs, inputs.escaped, torch.long), _or_zeros(rows, rows.escaped, torch.long)),
        keys=[*inputs.keys[: at.start], *rows.keys, *inputs.keys[at.stop :]],
        texts=[],
    )


def with_images(inputs: UnderstandInputs, images: Tensor) -> UnderstandInputs:
    """`inputs` about other pictures (B, I, 3, H, W), whose codes nobody stored."""
    return dataclasses.replace(inputs, images=images, source_codes=None, source_coded=[])


def _coded(inputs: UnderstandInputs) -> list[bool]:
    return inputs.source_coded or [False] * len(inputs.tokens)


def _lengths(inputs: UnderstandInputs, at: slice, rows: UnderstandInputs) -> list[int]:
    """Tokens of each row once `rows` are at `at`."""
    known = inputs.lengths and rows.lengths
    return [*inputs.lengths[: at.start], *rows.lengths, *inputs.lengths[at.stop :]] if known else []


def _gradient_rows(inputs: UnderstandInputs, at: slice, rows: UnderstandInputs) -> slice | None:
    """Rows whose pictures require a gradient once `rows` are at `at`."""
    if not rows.images.requires_grad:
        return inputs.gradient_rows
    if not inputs.images.requires_grad:
        return at
    before = inputs.gradient_rows
    return None if before is None else slice(min(before.start, at.start), max(before.stop, at.stop))


def _intact(inputs: PassInputs) -> Tensor:
    return torch.ones_like(inputs.counts, dtype=torch.bool) if inputs.intact is None else inputs.intact


def _or_zeros(inputs: PassInputs, values: Tensor | None, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(inputs.counts, dtype=dtype) if values is None else values


def _widened(tensor: Tensor, width: int, fill: int | Tensor) -> Tensor:
    """(B, w, ...) -> (B, width, ...), new places filled."""
    missing = width - tensor.shape[1]
    if not missing:
        return tensor
    new = torch.zeros(len(tensor), missing, *tensor.shape[2:], dtype=tensor.dtype, device=tensor.device) + fill
    return torch.cat([tensor, new.to(tensor.dtype)], dim=1)
