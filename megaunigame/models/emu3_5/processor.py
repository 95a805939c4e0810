"""Neutral rows -> the tensors of Emu3.5's two passes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from megaunigame.models.emu3_5.configuration import read_config, read_sides
from megaunigame.models.emu3_5.conversation import SYSTEM_PROMPT, Emu3p5Format
from megaunigame.models.emu3_5.tokenizer import open_tokenizer
from megaunigame.models.text.picture_sides import check_size
from megaunigame.models.text.processor import HALF, RowProcessor
from megaunigame.models.text.sequences import TokenSequence
from megaunigame.models.weights.settings_files import read_settings
from megaunigame.step.inputs import GenerateInputs


class Emu3p5Processor(RowProcessor):
    """Square pictures of one size per path. After the prompt of a generate row come the codes, with line ends between rows; the
    loss is on the codes."""

    format: Emu3p5Format

    @classmethod
    def from_folder(cls, path: str | Path, *, max_length: int) -> Emu3p5Processor:
        """Read tokenizer and picture sizes of a model folder. Raises ModelError when a file or a token is missing."""
        folder = Path(path)
        config = read_config(folder)
        image_size, source_size = read_sides(folder, config)
        tokenizer = open_tokenizer(folder, config.text_config.vocab_size)
        codes = config.vq_config.codebook_size
        check_size(tokenizer, config.text_config.vocab_size, folder)
        conversation = Emu3p5Format(
            tokenizer,
            codebook=codes,
            side=image_size // config.cell,
            source_side=source_size // config.cell,
            system_prompt=read_settings(folder / "processor_config.json").get("system_prompt", SYSTEM_PROMPT),
            where=str(folder),
        )
        return cls(
            tokenizer,
            conversation,
            image_size=image_size,
            source_size=source_size,
            after_prompt=conversation.grid.read + 1,
            loss_positions=conversation.grid.count,
            max_length=max_length,
            mean=HALF,
            std=HALF,
        )

    def without_condition(self, inputs: GenerateInputs) -> GenerateInputs:
        """The rows of `inputs` without task and text, padded like them; each keeps its source picture."""
        (rows, width), device = inputs.tokens.shape, inputs.tokens.device
        seen = torch.zeros(rows, 1, dtype=torch.bool, device=device)
        if inputs.image_valid is not None:
            seen = inputs.image_valid.any(1, keepdim=True)
        both = [self._stripped(self.format.without_condition(source), width) for source in (False, True)]
        without, about = (each.to(device) for each in both)
        tokens, read, image = torch.where(seen, about.unsqueeze(1), without.unsqueeze(1)).unbind(0)
        return dataclasses.replace(inputs, tokens=tokens, attention=read > 0, image_positions=image > 0)

    def _stripped(self, sequence: TokenSequence, width: int) -> torch.Tensor:
        """(3, width): tokens, 1 where there is one, 1 where it is of a picture; padded in front.

        A sequence with a picture may be longer, if no row of a batch has one; it is not used then.
        """
        columns = sequence.tokens, [1] * len(sequence), [int(image) for image in sequence.image]
        padding = [self.pad_id, 0, 0]
        padded = [[fill] * (width - len(column)) + column for fill, column in zip(padding, columns, strict=True)]
        return torch.tensor([column[-width:] for column in padded])
