"""Neutral rows -> the tensors of the two passes, for families whose language model reads text and visual tokens in a sequence.

Runs in data-loader workers.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from megaunigame.errors import ConfigError, DataError
from megaunigame.models.text.conversation import ConversationFormat
from megaunigame.models.text.lengths import RowLengths
from megaunigame.models.text.pictures import TO_SQUARE, Normalize, mask_to_square
from megaunigame.models.text.sequences import TokenSequence, pad, stack_pictures
from megaunigame.models.text.stored_codes import AcceptedCodes
from megaunigame.models.text.tokenizer_hash import tokenizer_hash
from megaunigame.step.amounts import Amounts
from megaunigame.step.codes import StoredCodes, stacked
from megaunigame.step.inputs import IGNORE, GenerateInputs, InputsT, PassInputs, UnderstandInputs
from megaunigame.step.labels import label_positions
from megaunigame.step.requests import CROP, FIT, GENERATE, UNDERSTAND, RowRequest, StepPlan
from megaunigame.step.rows import GenerateRow, Row, ShownPicture, UnderstandRow

HALF = (0.5, 0.5, 0.5)
"""Mean and standard deviation that bring [0, 1] to [-1, 1]."""


class RowProcessor:
    """Implements `Processor`.

    `max_length` bounds a whole row: prompt and answer of an understand row, prompt and image tokens of a generate row.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        conversation: ConversationFormat,
        *,
        image_size: int,
        source_size: int,
        after_prompt: int,
        loss_positions: int,
        max_length: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ):
        """`image_size`, `source_size`: sides of generated and of source pictures, in pixels. `after_prompt`: positions of a
        generate row after its prompt. `loss_positions`: count of a generate row. `mean`, `std`: of source pictures."""
        self.tokenizer = tokenizer
        self.format = conversation
        self.visual_tokens = conversation.visual_tokens
        self.image_size = image_size
        self.source_size = source_size
        self.after_prompt = after_prompt
        self.loss_positions = loss_positions
        self.max_length = max_length
        self.row_lengths = RowLengths(conversation, after_prompt, max_length)
        self.normalize_source = Normalize(mean, std)
        self.normalize_target = Normalize(HALF, HALF)
        self.accepted_codes: AcceptedCodes | None = None
        """Stored codes that rows may have; None: they are not used."""
        self.pack_tokens: dict[str, int] = {}
        """Tokens of a pass whose rows are packed, for `largest`; other passes have as many as their rows may have."""
        self.sends_bytes = False
        """Whether pictures of its inputs are bytes until `PassInputs.to`."""

    def for_loader(self) -> Self:
        sender = copy.copy(self)
        sender.sends_bytes = True
        return sender

    @property
    def pad_id(self) -> int:
        return self.format.pad

    @property
    def eos_id(self) -> int:
        return self.format.eos

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens back to text, without special tokens and without the space before an answer."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True).strip()

    def collate(
        self, plan: StepPlan, pass_name: str, rows: Sequence[Row | None], terms: Sequence[int], keys: Sequence[str]
    ) -> PassInputs:
        """One row per planned row of the pass; None becomes a dummy row with count 0 and the same shapes."""
        geometries = [plan.geometries[term] for term in terms]
        if pass_name == UNDERSTAND:
            return self._finished(self._understand(rows, terms, keys, geometries))
        if pass_name == GENERATE:
            return self._finished(self._generate(rows, terms, keys, geometries, takes_images=plan.takes_images(GENERATE)))
        raise ConfigError(f"{self.format.family} has no pass {pass_name!r}; it has {UNDERSTAND} and {GENERATE}.")

    def largest(self, plan: StepPlan, pass_name: str) -> PassInputs:
        """`count` rows of every request filled to `max_length`, with an image if the pass takes one; rows with a context with
        all its images. Further places are empty: dealt rows are not longer together. Of a pass whose rows are packed: until its
        `pack_tokens` are reached, further rows have hardly a text."""
        full = sum(r.count for r in plan.of_pass(pass_name))
        if pass_name in self.pack_tokens:
            full = -(-self.pack_tokens[pass_name] // self.max_length)
        rows: list[Row | None] = []
        terms: list[int] = []
        for request in plan.of_pass(pass_name):
            row = self._longest(request)
            filled = min(full, request.count)
            full -= filled
            rows += [row] * filled + [_shortest(row)] * (request.count - filled) + [None] * (request.places - request.count)
            terms += [plan.terms.index(request.term)] * request.places
        return self.collate(plan, pass_name, rows, terms, ["largest"] * len(rows))

    def _longest(self, request: RowRequest) -> Row:
        picture = torch.zeros(3, self.image_size, self.image_size, dtype=torch.uint8)
        text = "a " * self.max_length
        if request.pass_name == UNDERSTAND:
            return UnderstandRow([picture], [("a", text)], fills=True)
        return GenerateRow.of_all_images(request, text, picture)

    @cached_property
    def tokenizer_hash(self) -> str:
        return tokenizer_hash(self.tokenizer)

    def count_tokens(self, text: str) -> int:
        return len(self.format.plain.encode(text).tokens)

    def lengths(self, request: RowRequest, amounts: Amounts) -> np.ndarray:
        """(n,) float64: tokens that the rows of a request are likely to have, of samples that hold these amounts."""
        return self.row_lengths.of(request, amounts)

    def prompt_inputs(
        self,
        images: Sequence[Sequence[Tensor]],
        questions: Sequence[str],
        earlier: Sequence[Sequence[tuple[str, str]]] | None = None,
        *,
        room: int = 0,
    ) -> UnderstandInputs:
        """Questions about `images` (uint8, any number per question), after `earlier` turns of their conversations, for
        `answer`: left padded, no labels.

        Raises DataError for a row that leaves fewer than `room` tokens of `max_length` to its answer; 0: any length is taken.
        """
        turns = [()] * len(questions) if earlier is None else earlier
        sequences = [self.format.question(len(i), q, before) for i, q, before in zip(images, questions, turns, strict=True)]
        for sequence, pictures, before in zip(sequences, images, turns, strict=True):
            if room and len(sequence) + room > self.max_length:
                raise DataError(
                    f"The question has {len(sequence)} tokens, with {len(pictures)} picture(s) and {len(before)} earlier "
                    f"turn(s) of its conversation. {room} more are for the answer, and a row has {self.max_length}. "
                    "Shorten it, ask for a shorter answer (max_tokens), or load the model with a larger max_length."
                )
        squares = self._squares(images, [FIT] * len(sequences))
        return self._finished(self._asked(sequences, squares, [0] * len(sequences), [""] * len(sequences), left=True))

    def generate_prompts(
        self, prompts: Sequence[str], sources: Sequence[Tensor | None] | None = None, geometry: str = CROP
    ) -> GenerateInputs:
        """Requests for pictures, optionally with source pictures, for `sample`: left padded; targets are (B, 3, 0, 0)."""
        given = [None] * len(prompts) if sources is None else list(sources)
        sequences = [self._prompt(p, s is not None) for p, s in zip(prompts, given, strict=True)]
        images = None
        if sources is not None:
            images = self._squares([[] if s is None else [s] for s in given], [geometry] * len(given))
        counts, targets = torch.full((len(prompts),), float(self.loss_positions)), torch.zeros(len(prompts), 3, 0, 0)
        return self._finished(self._requested(sequences, images, [0] * len(sequences), [""] * len(sequences), counts, targets))

    def target_pixels(self, picture: Tensor, geometry: str, side: int) -> Tensor:
        """uint8 (3, h, w) -> the square that the frozen tokenizer encodes, (3, side, side) in [-1, 1]."""
        return self.normalize_target(TO_SQUARE[geometry](picture, side))

    def check(self, row: Row, geometry: str, key: str) -> None:
        """Raises DataError for a row that cannot keep its pictures and its first answer in `max_length`, and for stored codes
        that it would use and that are damaged or of too few pictures; ConfigError as `AcceptedCodes.of`."""
        if isinstance(row, GenerateRow):
            self._source_codes(row.source_codes, geometry, len(self._shown(row)), key)
            self._target_codes(row.target_codes, geometry, 1, key)
            return
        if not row.fills:
            self.format.require_fit(len(row.images), row.turns, self.max_length)
        self._source_codes(row.codes, geometry, len(row.images), key)

    def _understand(
        self, rows: Sequence[Row | None], terms: Sequence[int], keys: Sequence[str], geometries: Sequence[str]
    ) -> UnderstandInputs:
        sequences: list[TokenSequence] = []
        images: list[list[Tensor]] = []
        codes: list[Tensor | None] = []
        for row, key, geometry in zip(rows, keys, geometries, strict=True):
            if row is None:
                sequences.append(self._dummy())
                images.append([])
                codes.append(self._source_codes(None, geometry, 0, key))
                continue
            assert isinstance(row, UnderstandRow)
            codes.append(self._source_codes(row.codes, geometry, len(row.images), key))
            try:
                given = len(row.images), row.turns, row.independent, self.max_length
                sequences.append(self.format.understand(*given, fills=row.fills))
            except DataError as error:
                raise DataError(f"Sample {key}: {error}") from error
            images.append(row.images)
        inputs = self._asked(sequences, self._squares(images, geometries), terms, keys, left=False)
        inputs.source_codes, inputs.source_coded = stacked(codes, inputs.images.shape[1])
        return inputs

    def _generate(
        self,
        rows: Sequence[Row | None],
        terms: Sequence[int],
        keys: Sequence[str],
        geometries: Sequence[str],
        *,
        takes_images: bool,
    ) -> GenerateInputs:
        sequences: list[TokenSequence] = []
        images: list[list[Tensor]] = []
        targets = torch.zeros(len(rows), 3, self.image_size, self.image_size, dtype=torch.uint8)
        counts, source_gradient = torch.zeros(len(rows)), torch.ones(len(rows))
        emphasis = torch.ones(len(rows), self.image_size, self.image_size)
        source_codes: list[Tensor | None] = []
        target_codes: list[Tensor | None] = []
        for index, (row, key, geometry) in enumerate(zip(rows, keys, geometries, strict=True)):
            if row is None:
                sequences.append(self._dummy())
                images.append([])
                source_codes.append(self._source_codes(None, geometry, 0, key))
                target_codes.append(self._target_codes(None, geometry, 0, key))
                continue
            assert isinstance(row, GenerateRow)
            sequences.append(self._request(row, key))
            images.append(self._shown(row))
            source_codes.append(self._source_codes(row.source_codes, geometry, len(images[-1]), key))
            target_codes.append(self._target_codes(row.target_codes, geometry, 1, key))
            targets[index] = TO_SQUARE[geometry](row.target, self.image_size)
            counts[index] = self.loss_positions
            source_gradient[index] = row.source_gradient
            if row.emphasis is not None:
                mask, weight = row.emphasis
                emphasis[index] += (weight - 1) * mask_to_square(mask, self.image_size, geometry)
            sequences[-1].intact &= not row.unconditional
        sources = self._squares(images, geometries) if takes_images else None
        inputs = self._requested(sequences, sources, terms, keys, counts, targets)
        inputs.levels["targets"] = self.normalize_target.levels(torch.tensor([row is not None for row in rows]))
        filled, inputs.target_coded = stacked(target_codes, 1)
        inputs.target_codes = None if filled is None else filled[:, 0]
        if inputs.images is not None:
            inputs.source_codes, inputs.source_coded = stacked(source_codes, inputs.images.shape[1])
        if takes_images and (source_gradient != 1).any():
            inputs.source_gradient = source_gradient
        if (emphasis != 1).any():
            inputs.emphasis = emphasis
        return inputs

    def _request(self, row: GenerateRow, key: str) -> TokenSequence:
        """The sequence of a generate row of the sample `key`."""
        if row.context:
            raise ConfigError(
                f"{self.format.family} draws from one source image at most, and the row of sample {key} has a context of "
                "images and texts. Leave out such rows, or take a family that interleaves them."
            )
        sequence = self._prompt(row.prompt, row.source is not None)
        return self.format.unconditional(sequence) if row.unconditional else sequence

    def _shown(self, row: GenerateRow) -> list[Tensor]:
        """Source images that are read through the understanding path."""
        if row.context:
            return [part.picture for part in row.context if isinstance(part, ShownPicture) and part.seen]
        dropped = row.unconditional and not self.format.keeps_source
        return [] if row.source is None or dropped else [row.source]

    def _prompt(self, prompt: str, source: bool) -> TokenSequence:
        limit = self.max_length - self.after_prompt
        shortest = self.format.shortest_request(source)
        if limit < shortest:
            raise ConfigError(
                f"model.max_length={self.max_length} leaves {limit} tokens to the prompt, because {self.after_prompt} "
                f"positions follow it; {'with a source image ' if source else ''}it needs {shortest}. "
                f"Give model.max_length={self.after_prompt + shortest} or more."
            )
        return self.format.generate(prompt, source, limit)

    def _target_codes(self, codes: StoredCodes | None, geometry: str, pictures: int, key: str) -> Tensor | None:
        """Of the target of a row; `pictures` 0: a dummy row."""
        accepted = self.accepted_codes
        return None if accepted is None else accepted.of(codes, (geometry, self.image_size), pictures, self.loss_positions, key)

    def _source_codes(self, codes: StoredCodes | None, geometry: str, pictures: int, key: str) -> Tensor | None:
        """Of the source pictures of a row."""
        accepted = self.accepted_codes
        if accepted is None or not accepted.of_sources:
            return None
        return accepted.of(codes, (geometry, self.source_size), pictures, self.visual_tokens, key)

    def unconditional_tokens(self) -> list[int]:
        """The unconditional request for a picture, in families where it is always the same."""
        return self.format.unconditional(self._dummy()).tokens

    def _dummy(self) -> TokenSequence:
        sequence = TokenSequence()
        sequence.add([self.pad_id])
        return sequence

    def _asked(
        self,
        sequences: list[TokenSequence],
        images: list[list[Tensor]],
        terms: Sequence[int],
        keys: Sequence[str],
        *,
        left: bool,
    ) -> UnderstandInputs:
        labels = pad([s.labels for s in sequences], IGNORE, left=left)
        segments = pad([s.segments for s in sequences], 0, left=left)
        pixels, valid = stack_pictures(images, self.source_size)
        return UnderstandInputs(
            **self._read(sequences, terms, keys, left=left),
            counts=(labels != IGNORE).sum(1).float(),
            labels=labels,
            label_positions=label_positions(labels),
            images=pixels,
            image_valid=valid,
            segments=segments if segments.any() else None,
            levels={"images": self.normalize_source.levels(valid)},
        )

    def _requested(
        self,
        sequences: list[TokenSequence],
        images: list[list[Tensor]] | None,
        terms: Sequence[int],
        keys: Sequence[str],
        counts: Tensor,
        targets: Tensor,
    ) -> GenerateInputs:
        """Left padded, because image tokens follow."""
        inputs = GenerateInputs(**self._read(sequences, terms, keys, left=True), counts=counts, targets=targets)
        if images is not None:
            inputs.images, inputs.image_valid = stack_pictures(images, self.source_size)
            inputs.levels["images"] = self.normalize_source.levels(inputs.image_valid)
        return inputs

    def _read(self, sequences: list[TokenSequence], terms: Sequence[int], keys: Sequence[str], *, left: bool) -> dict[str, Any]:
        """Fields of both passes that the sequences give."""
        attention = pad([[True] * len(s) for s in sequences], False, left=left)
        return {
            "tokens": pad([s.tokens for s in sequences], self.pad_id, left=left),
            "attention": attention,
            "terms": torch.tensor(list(terms), dtype=torch.long),
            "image_positions": pad([s.image for s in sequences], False, left=left),
            "front_padding": left and not bool(attention.all()),
            "lengths": [len(s) for s in sequences],
            "intact": torch.tensor([s.intact for s in sequences]),
            "cut": torch.tensor([s.cut for s in sequences]),
            "escaped": torch.tensor([s.escaped for s in sequences]),
            "keys": list(keys),
        }

    def _finished(self, inputs: InputsT) -> InputsT:
        """Inputs as this processor gives them out."""
        return inputs if self.sends_bytes else inputs.with_values()

    def _squares(self, images: Sequence[Sequence[Tensor]], geometries: Sequence[str]) -> list[list[Tensor]]:
        """The source pictures of each row as squares, uint8 (3, side, side)."""
        pairs = zip(images, geometries, strict=True)
        return [[TO_SQUARE[geometry](picture, self.source_size) for picture in pictures] for pictures, geometry in pairs]


def _shortest(row: Row) -> Row:
    """A row about the same pictures with as little text as there can be."""
    if isinstance(row, UnderstandRow):
        return UnderstandRow(row.images, [("a", "a")])
    return dataclasses.replace(row, prompt="a")
