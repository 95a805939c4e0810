"""Questions and answers as a row of a transformers processor: where its answers and its pictures stand.

Every model has its own chat template, and templates do not mark answers. An answer begins where the text of the finished
conversation leaves the text that ends with its question, and ends with the first special token (the end of the turn), or
where the template's next turn begins. The processor puts many image tokens in the place of one, so positions are counted from
the end: pictures come before the first question. A processor may write one more token after any text (Chameleon: the separator
between question and answer), as if it were a prompt: it is not part of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor

from megaunigame.errors import DataError, ModelError


@dataclass(frozen=True)
class ChatRow:
    """One conversation of S tokens."""

    inputs: dict[str, Tensor]
    """What the model takes: `input_ids` (1, S), pixels, and whatever else its processor makes."""
    answers: Tensor
    """(1, Q) int64: positions of the answer tokens, ascending, with the special token that ends each answer."""
    pictures: Tensor
    """(1, S) bool: positions of the image tokens."""

    @property
    def length(self) -> int:
        return self.pictures.shape[1]


class ChatRows:
    """Makes rows with a processor and its chat template."""

    def __init__(self, processor: Any, image_token: int, name: str):
        """`image_token`: id of the token in whose places the model puts the picture. `name`: of the model, for messages."""
        self.processor, self.image_token, self.name = processor, image_token, name
        holders = (processor, processor.tokenizer)  # some processors do not take the template; their tokenizer has read it too
        self.template: Any = next((holder for holder in holders if getattr(holder, "chat_template", None) is not None), None)
        """What writes conversations."""
        if self.template is None:
            raise ModelError(
                f"Neither the processor nor the tokenizer of {name} has a chat template (chat_template.jinja); questions "
                "cannot be asked."
            )
        added = processor.tokenizer.added_tokens_decoder.items()
        self.special = {number for number, token in added if token.special}
        self.controls = sorted({str(token) for number, token in added if token.special or number == image_token})

    def control_in(self, pairs: Sequence[tuple[str, str]]) -> str:
        """The first control token that is written in a text, and would not stay text; "" without one."""
        texts = [text for pair in pairs for text in pair]
        return next((control for control in self.controls if any(control in text for text in texts)), "")

    def row(self, key: str, pictures: Sequence[Image.Image], pairs: Sequence[tuple[str, str]]) -> ChatRow:
        """The row of a sample's pictures and (question, answer) pairs.

        Raises ModelError for a template or processor whose answers or pictures cannot be found, DataError naming the sample
        `key` when the processor refuses it.
        """
        turns = [_turn("user", ["image"] * len(pictures), pairs[0][0]), _turn("assistant", [], pairs[0][1])]
        for question, answer in pairs[1:]:
            turns += [_turn("user", [], question), _turn("assistant", [], answer)]
        text = self._text(turns)
        tokens = self._tokens(text)
        firsts = [self._after_prompt(turns, tokens, number) for number in range(len(pairs))]
        begins = not text.startswith(self.processor.tokenizer.bos_token or "\0")  # many templates write it themselves
        try:
            inputs = self.processor(text=[text], images=list(pictures), return_tensors="pt", add_special_tokens=begins)
        except ValueError as error:
            raise DataError(f"Sample {key}: the processor of {self.name} refuses it: {error}") from error
        places = inputs["input_ids"] == self.image_token
        if not places.any():
            raise ModelError(f"The processor of {self.name} puts no image token {self.image_token} into a row with a picture.")
        found = inputs["input_ids"][0].tolist()
        added = self._added(found, tokens[firsts[0] :])
        shift = len(found) - len(added) - len(tokens)
        spans = [self._answer(turns, tokens, number, first, added) for number, first in enumerate(firsts)]
        positions = [position + shift for first, end in spans for position in range(first, end)]
        return ChatRow(dict(inputs), torch.tensor([positions]), places)

    def _after_prompt(self, turns: Sequence[dict[str, Any]], tokens: list[int], number: int) -> int:
        """Position, in the tokens of the whole conversation, after those of the prompt that ends with a question."""
        asked = self._tokens(self._text(turns[: 2 * number + 1], answer_due=True))
        first = _common(asked, tokens)
        if len(asked) - first > 1:  # the last token of a prompt may join the first of the answer
            raise ModelError(
                f"The chat template of {self.name} writes a finished conversation unlike its prompt: they part at token "
                f"{first} of {len(asked)}. Its answers cannot be found; measure another model."
            )
        return first

    def _added(self, found: list[int], last: list[int]) -> list[int]:
        """The tokens that the processor wrote after a conversation that ends with the tokens `last`: one or none."""
        for end in (len(found), len(found) - 1):
            if found[end - len(last) : end] == last:
                return found[end:]
        raise ModelError(f"The processor of {self.name} changes the text after the pictures; answers cannot be found in it.")

    def _answer(
        self, turns: Sequence[dict[str, Any]], tokens: list[int], number: int, first: int, added: list[int]
    ) -> tuple[int, int]:
        """First position and end of an answer in the tokens of the whole conversation; `added`: as the processor does."""
        if tokens[first : first + len(added)] == added:
            first += len(added)
        end = _common(self._tokens(self._text(turns[: 2 * number + 2])), tokens)
        end = next((i + 1 for i in range(first, end) if tokens[i] in self.special), end)
        while end > first and not self.processor.tokenizer.decode(tokens[end - 1]).strip():
            end -= 1
        return first, end

    def _text(self, turns: Sequence[dict[str, Any]], answer_due: bool = False) -> str:
        try:
            return str(self.template.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=answer_due))
        except (TemplateError, TypeError) as error:  # a TypeError where it takes texts and no lists of parts
            raise ModelError(f"The chat template of {self.name} refuses questions and answers in turn: {error}") from error

    def _tokens(self, text: str) -> list[int]:
        return list(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])


def _turn(role: str, parts: Sequence[str], text: str) -> dict[str, Any]:
    return {"role": role, "content": [*({"type": part} for part in parts), {"type": "text", "text": text}]}


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest beginning that both have."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
