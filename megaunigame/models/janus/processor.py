"""Neutral rows -> the tensors of Janus's two passes. Runs in data-loader workers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from megaunigame.errors import ConfigError, DataError, ModelError
from megaunigame.models.janus.configuration import codes_per_image, read_config, visual_tokens
from megaunigame.models.janus.conversation import ConversationFormat, TokenRow
from megaunigame.models.janus.pictures import Normalise, crop, fit
from megaunigame.passes import GENERATE, IGNORE, UNDERSTAND, GenerateRow, PassInputs, Row, StepPlan, UnderstandRow

HALF = (0.5, 0.5, 0.5)
"""Mean and standard deviation that bring [0, 1] to [-1, 1]."""
MULTIPLE = 8
"""Sequences are padded to a multiple of this."""


class JanusProcessor:
    """Implements the `Processor` contract.

    `max_length` bounds a whole row: prompt and answer of an understand row, prompt and codes of a generate row.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        image_size: int,
        visual_tokens: int,
        codes: int,
        max_length: int,
        mean: tuple[float, ...] = HALF,
        std: tuple[float, ...] = HALF,
        system_prompt: str = "",
        where: str = "the model folder",
    ):
        self.tokenizer = tokenizer
        self.format = ConversationFormat(tokenizer, visual_tokens, system_prompt, where)
        self.image_size = image_size
        self.visual_tokens = visual_tokens
        self.codes = codes
        self.max_length = max_length
        self.normalise_source = Normalise(mean, std)
        self.normalise_target = Normalise(HALF, HALF)

    @classmethod
    def from_folder(cls, path: str | Path, *, max_length: int) -> JanusProcessor:
        """Read tokenizer and image settings of a model folder. Raises ModelError when a file or a token is missing."""
        folder = Path(path)
        if not (folder / "tokenizer.json").is_file():
            raise ModelError(f"No tokenizer.json in {folder}. Copy the tokenizer files of the model there.")
        config = read_config(folder)
        images = _read_json(folder / "preprocessor_config.json")
        return cls(
            PreTrainedTokenizerFast.from_pretrained(str(folder)),
            image_size=config.vision_config.image_size,
            visual_tokens=visual_tokens(config),
            codes=codes_per_image(config),
            max_length=max_length,
            mean=tuple(images.get("image_mean", HALF)),
            std=tuple(images.get("image_std", HALF)),
            system_prompt=_read_json(folder / "processor_config.json").get("system_prompt", ""),
            where=str(folder),
        )

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
        """One row per slot of the pass; None becomes a dummy row with count 0 and the same shapes."""
        if pass_name == UNDERSTAND:
            return self._understand(rows, terms, keys)
        if pass_name == GENERATE:
            return self._generate(rows, terms, keys, takes_images=plan.takes_images(GENERATE))
        raise ConfigError(f"Janus has no pass {pass_name!r}; it has {UNDERSTAND} and {GENERATE}.")

    def largest(self, plan: StepPlan, pass_name: str) -> PassInputs:
        """Every row filled to `max_length`, with an image wherever the pass takes one."""
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
        inputs = self._pad(sequences, left=True, terms=[0] * len(sequences), keys=[""] * len(sequences))
        inputs.labels = None
        inputs.images, inputs.image_valid = self._sources([list(i) for i in images])
        return inputs

    def generate_prompts(self, prompts: Sequence[str], sources: Sequence[Tensor | None] | None = None) -> PassInputs:
        """Requests for pictures, perhaps with a source picture each, for `sample`: left padded, no targets."""
        given = [None] * len(prompts) if sources is None else list(sources)
        sequences = [self._prompt(p, s is not None) for p, s in zip(prompts, given, strict=True)]
        inputs = self._pad(sequences, left=True, terms=[0] * len(sequences), keys=[""] * len(sequences))
        inputs.labels = None
        inputs.counts.fill_(self.codes)
        if sources is not None:
            inputs.images, inputs.image_valid = self._sources([[] if s is None else [s] for s in given])
        return inputs

    def _understand(self, rows: Sequence[Row | None], terms: Sequence[int], keys: Sequence[str]) -> PassInputs:
        sequences: list[TokenRow] = []
        images: list[list[Tensor]] = []
        for row, key in zip(rows, keys, strict=True):
            if row is None:
                sequences.append(self._dummy())
                images.append([])
                continue
            assert isinstance(row, UnderstandRow)
            if self.format.fixed_length(len(row.images)) > self.max_length:
                taken = len(row.images) * (self.visual_tokens + 2)
                raise DataError(
                    f"Sample {key}: {len(row.images)} image(s) take {taken} tokens, and max_length is "
                    f"{self.max_length}. Raise max_length or leave out samples with so many images."
                )
            sequences.append(self.format.understand(len(row.images), row.turns, row.independent, self.max_length))
            images.append(row.images)
        inputs = self._pad(sequences, left=False, terms=terms, keys=keys)
        if not any(max(s.segments) for s in sequences):
            inputs.segments = None
        inputs.images, inputs.image_valid = self._sources(images)
        return inputs

    def _generate(
        self, rows: Sequence[Row | None], terms: Sequence[int], keys: Sequence[str], *, takes_images: bool
    ) -> PassInputs:
        sequences: list[TokenRow] = []
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
            if row.unconditional:
                inner = len(sequence) - 2
                sequence.tokens[1:-1] = [self.pad_id] * inner
                sequence.slots[1:-1] = [False] * inner
            sequences.append(sequence)
            images.append([] if row.source is None or row.unconditional else [row.source])
            targets[index] = self.normalise_target(crop(row.target, self.image_size))
            counts[index] = self.codes
            source_gradient[index] = row.source_gradient
        inputs = self._pad(sequences, left=True, terms=terms, keys=keys)
        inputs.labels, inputs.segments, inputs.counts, inputs.targets = None, None, counts, targets
        if takes_images:
            inputs.images, inputs.image_valid = self._sources(images)
            inputs.source_gradient = None if (source_gradient == 1).all() else source_gradient
        return inputs

    def _prompt(self, prompt: str, source: bool) -> TokenRow:
        limit = self.max_length - self.codes
        shortest = self.format.fixed_length(int(source))
        if limit < shortest:
            raise ConfigError(
                f"max_length={self.max_length} leaves {limit} tokens to the prompt of {self.codes} codes; "
                f"{'with a source image ' if source else ''}it needs {shortest}. "
                f"Give max_length={self.codes + shortest} or more."
            )
        return self.format.generate(prompt, source, limit)

    def _dummy(self) -> TokenRow:
        sequence = TokenRow()
        sequence.add([self.pad_id])
        return sequence

    def _pad(self, sequences: list[TokenRow], *, left: bool, terms: Sequence[int], keys: Sequence[str]) -> PassInputs:
        """Stack sequences of different lengths; every field is filled, the caller drops what its pass has not."""
        size = -(-max(map(len, sequences)) // MULTIPLE) * MULTIPLE
        shape = (len(sequences), size)
        tokens = torch.full(shape, self.pad_id)
        labels = torch.full(shape, IGNORE)
        segments = torch.zeros(shape, dtype=torch.long)
        attention, slots = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
        for index, sequence in enumerate(sequences):
            where = slice(size - len(sequence), size) if left else slice(0, len(sequence))
            tokens[index, where] = torch.tensor(sequence.tokens)
            labels[index, where] = torch.tensor(sequence.labels)
            segments[index, where] = torch.tensor(sequence.segments)
            slots[index, where] = torch.tensor(sequence.slots)
            attention[index, where] = True
        return PassInputs(
            tokens=tokens,
            attention=attention,
            terms=torch.tensor(list(terms), dtype=torch.long),
            counts=(labels != IGNORE).sum(1).float(),
            labels=labels,
            segments=segments,
            image_slots=slots,
            keys=list(keys),
        )

    def _sources(self, images: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
        """uint8 pictures per row -> (B, I, 3, H, W) normalised and (B, I) validity; I >= 1 even without pictures."""
        slots = max(1, *map(len, images))
        pixels = torch.zeros(len(images), slots, 3, self.image_size, self.image_size)
        valid = torch.zeros(len(images), slots, dtype=torch.bool)
        for row, pictures in enumerate(images):
            for slot, picture in enumerate(pictures):
                pixels[row, slot] = self.normalise_source(fit(picture, self.image_size))
                valid[row, slot] = True
        return pixels, valid


def _read_json(file: Path) -> dict[str, Any]:
    """An optional settings file; absent means every setting has its default."""
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ModelError(f"{file} is not JSON: {error}.") from error
