"""Neutral rows -> the tensors of Emu3.5's two passes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from megaunigame.models.causal.token_format import CodeSquares
from megaunigame.models.causal.token_rows import TokenRows
from megaunigame.models.emu3_5.configuration import read_config, read_sides
from megaunigame.models.emu3_5.conversation import SYSTEM_PROMPT, Emu3p5Format
from megaunigame.models.emu3_5.tokenizer import open_tokenizer
from megaunigame.models.text.sequences import TokenSequence
from megaunigame.models.weights.settings_files import check_tokens, read_system_prompt
from megaunigame.step.inputs import GenerateInputs


class Emu3p5Processor(TokenRows):
    """After the prompt of a generate row come the codes, with line ends between rows."""

    format: Emu3p5Format

    @classmethod
    def from_folder(cls, path: str | Path, *, max_length: int) -> Emu3p5Processor:
        """Read tokenizer and picture sizes of a model folder. Raises ModelError when a file or a token is missing."""
        folder = Path(path)
        config = read_config(folder)
        squares = CodeSquares(config.vq_config.codebook_size, config.cell, *read_sides(folder, config))
        tokenizer = open_tokenizer(folder, config.text_config.vocab_size)
        check_tokens(tokenizer, config.text_config.vocab_size, folder)
        conversation = Emu3p5Format(tokenizer, squares, read_system_prompt(folder, SYSTEM_PROMPT), str(folder))
        return cls(conversation, max_length=max_length)

    def without_condition(self, inputs: GenerateInputs) -> GenerateInputs:
        """The rows of `inputs` without task and text, padded like them; each keeps its source picture."""
        (rows, width), device = inputs.tokens.shape, inputs.tokens.device
        seen = torch.zeros(rows, 1, dtype=torch.bool, device=device)
        if inputs.image_valid is not None:
            seen = inputs.image_valid.any(1, keepdim=True)
        both = [self._stripped(self.format.without_condition(source), width) for source in (False, True)]
        without, about = (each.to(device) for each in both)
        tokens, read, image = torch.where(seen, about.unsqueeze(1), without.unsqueeze(1)).unbind(0)
        return dataclasses.replace(inputs, tokens=tokens, attention=read > 0, image_positions=image > 0, lengths=[])

    def _stripped(self, sequence: TokenSequence, width: int) -> torch.Tensor:
        """(3, width): tokens, 1 where there is one, 1 where it is of a picture; padded in front.

        A sequence with a picture may be longer, if no row of a batch has one; it is not used then.
        """
        columns = sequence.tokens, [1] * len(sequence), [int(image) for image in sequence.image]
        padding = [self.pad_id, 0, 0]
        padded = [[fill] * (width - len(column)) + column for fill, column in zip(padding, columns, strict=True)]
        return torch.tensor([column[-width:] for column in padded])
