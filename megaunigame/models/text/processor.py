"""Neutral rows -> the tensors of the two passes, for families whose language model reads text and visual tokens in a sequence.

Runs in data-loader workers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from megaunigame.errors import ConfigError, DataError
from megaunigame.models.text.conversation import ConversationFormat
from megaunigame.models.text.pictures import Normalize, crop, fit
from megaunigame.models.text.sequences import TokenSequence, pad, stack_sources
from megaunigame.step.inputs import PassInputs
from megaunigame.step.requests import GENERATE, UNDERSTAND, StepPlan
from megaunigame.step.rows import GenerateRow, Row, UnderstandRow

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
        self.normalize_source = Normalize(mean, std)
        self.normalize_target = Normalize(HALF, HALF)

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
        if pass_name == UNDERSTAND:
            return self._understand(rows, terms, keys)
        if pass_name == GENERATE:
            return self._generate(rows, terms, keys, takes_images=plan.takes_images(GENERATE))
        raise ConfigError(f"{self.format.family} has no pass {pass_name!r}; it has {UNDERSTAND} and {GENERATE}.")

    def largest(self, plan: StepPlan, pass_name: str) -> PassInputs:
        """Every row filled to `max_length`, with an image if the pass takes one."""
        requests = [r for r in plan.of_pass(pass_name) for _ in range(r.count)]
        picture = torch.zeros(3, self.image_size, self.image_size, dtype=torch.uint8)
        text = "a " * self.max_length
        rows: list[Row] = [
            UnderstandRow([picture], [("a", text)])
            if pass_name == UNDERSTAND
            else GenerateRow(text, picture, source=picture if r.takes_source else None)
            for r in requests
        ]
        terms = [plan.terms.index(r.term) for r in requests]
        return self.collate(plan, pass_name, rows, terms, ["largest"] * len(rows))

    def prompt_inputs(self, images: Sequence[Sequence[Tensor]], questions: Sequence[str]) -> PassInputs:
        """Questions about `images` (uint8, any number per question) for `answer`: left padded, no labels."""
        sequences = [self.format.question(len(i), q) for i, q in zip(images, questions, strict=True)]
        inputs = self._prompts(sequences, terms=[0] * len(sequences), keys=[""] * len(sequences))
        inputs.images, inputs.image_valid = self._sources([list(i) for i in images])
        return inputs

    def generate_prompts(self, prompts: Sequence[str], sources: Sequence[Tensor | None] | None = None) -> PassInputs:
        """Requests for pictures, optionally with source pictures, for `sample`: left padded, no targets."""
        given = [None] * len(prompts) if sources is None else list(sources)
        sequences = [self._prompt(p, s is not None) for p, s in zip(prompts, given, strict=True)]
        inputs = self._prompts(sequences, terms=[0] * len(sequences), keys=[""] * len(sequences))
        inputs.counts.fill_(self.loss_positions)
        if sources is not None:
            inputs.images, inputs.image_valid = self._sources([[] if s is None else [s] for s in given])
        return inputs

    def _understand(self, rows: Sequence[Row | None], terms: Sequence[int], keys: Sequence[str]) -> PassInputs:
        sequences: list[TokenSequence] = []
        images: list[list[Tensor]] = []
        for row, key in zip(rows, keys, strict=True):
            if row is None:
                sequences.append(self._dummy())
                images.append([])
                continue
            assert isinstance(row, UnderstandRow)
            if self.format.fixed_length(len(row.images)) > self.max_length:
                taken = self.format.fixed_length(len(row.images)) - self.format.fixed_length(0)
                raise DataError(
                    f"Sample {key}: {len(row.images)} image(s) take {taken} tokens, and max_length is "
                    f"{self.max_length}. Raise max_length or leave out samples with so many images."
                )
            sequences.append(self.format.understand(len(row.images), row.turns, row.independent, self.max_length))
            images.append(row.images)
        inputs = pad(sequences, self.pad_id, left=False, terms=terms, keys=keys)
        if not any(max(s.segments) for s in sequences):
            inputs.segments = None
        inputs.images, inputs.image_valid = self._sources(images)
        return inputs

    def _generate(
        self, rows: Sequence[Row | None], terms: Sequence[int], keys: Sequence[str], *, takes_images: bool
    ) -> PassInputs:
        sequences: list[TokenSequence] = []
        images: list[list[Tensor]] = []
        targets = torch.zeros(len(rows), 3, self.image_size, self.image_size)
        counts, source_gradient = torch.zeros(len(rows)), torch.ones(len(rows))
        for index, row in enumerate(rows):
            if row is None:
                sequences.append(self._dummy())
                images.append([])
                continue
            assert isinstance(row, GenerateRow)
            sequence = self._prompt(row.prompt, row.source is not None)
            sequences.append(self.format.unconditional(sequence) if row.unconditional else sequence)
            images.append([] if row.source is None or row.unconditional else [row.source])
            targets[index] = self.normalize_target(crop(row.target, self.image_size))
            counts[index] = self.loss_positions
            source_gradient[index] = row.source_gradient
            sequences[-1].intact &= not row.unconditional
        inputs = self._prompts(sequences, terms=terms, keys=keys)
        inputs.segments, inputs.counts, inputs.targets = None, counts, targets
        if takes_images:
            inputs.images, inputs.image_valid = self._sources(images)
            inputs.source_gradient = None if (source_gradient == 1).all() else source_gradient
        return inputs

    def _prompt(self, prompt: str, source: bool) -> TokenSequence:
        limit = self.max_length - self.after_prompt
        shortest = self.format.shortest_request(source)
        if limit < shortest:
            raise ConfigError(
                f"max_length={self.max_length} leaves {limit} tokens to the prompt, because {self.after_prompt} positions "
                f"follow it; {'with a source image ' if source else ''}it needs {shortest}. "
                f"Give max_length={self.after_prompt + shortest} or more."
            )
        return self.format.generate(prompt, source, limit)

    def unconditional_tokens(self) -> list[int]:
        """The unconditional request for a picture, in families where it is always the same."""
        return self.format.unconditional(self._dummy()).tokens

    def _dummy(self) -> TokenSequence:
        sequence = TokenSequence()
        sequence.add([self.pad_id])
        return sequence

    def _prompts(self, sequences: list[TokenSequence], *, terms: Sequence[int], keys: Sequence[str]) -> PassInputs:
        """Left padded, because image tokens follow; without labels."""
        inputs = pad(sequences, self.pad_id, left=True, terms=terms, keys=keys)
        inputs.labels, inputs.label_positions = None, None
        return inputs

    def _sources(self, images: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
        """uint8 pictures per row -> (B, I, 3, H, W) normalized and (B, I) validity."""
        return stack_sources(images, self.source_size, lambda p: self.normalize_source(fit(p, self.source_size)))
