"""The conversation format of Show-o.

One turn about pictures, and one about none::

    <|mmu|>(pictures)<|endoftext|>USER: \\nquestion ASSISTANT: answer<|endoftext|>
    <|endoftext|>USER: question ASSISTANT: answer<|endoftext|>

A picture is `<|soi|>(codes, line by line)<|eoi|>`. A request for one, without and with a source picture::

    <|t2i|><|endoftext|>prompt<|endoftext|><|soi|>
    <|t2i|><|endoftext|>prompt<|endoftext|><|soi|>(codes of the source)<|eoi|><|soi|>

Codes and the mask token are not in the tokenizer: they are counted from its length.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from megaunigame.errors import ModelError
from megaunigame.models.causal.code_grid import CodeGrid
from megaunigame.models.causal.token_format import CodeSquares, TokenFormat
from megaunigame.models.text.plain_text import PlainTokens
from megaunigame.models.text.sequences import TokenSequence

END = "<|endoftext|>"
PAD, BEGIN_OF_IMAGE, END_OF_IMAGE, GENERATE, UNDERSTAND = "[PAD]", "<|soi|>", "<|eoi|>", "<|t2i|>", "<|mmu|>"
LAST = "<|lvg|>"
SPECIAL = (PAD, BEGIN_OF_IMAGE, END_OF_IMAGE, "<|sov|>", "<|eov|>", GENERATE, UNDERSTAND, "<|t2v|>", "<|v2v|>", LAST)
"""In the order of their ids, after the tokens of the text."""
USER, ASSISTANT = "USER:", " ASSISTANT:"


def add_special_tokens(tokenizer: PreTrainedTokenizerFast, text_tokens: int, where: str) -> None:
    """Add Show-o's special tokens to a tokenizer of text, as the official code does; one that has them stays as it is.

    Raises ModelError when they are not the ids that follow `text_tokens` ones.
    """
    vocabulary = tokenizer.get_vocab()
    if not any(token in vocabulary for token in SPECIAL):
        tokenizer.add_tokens(list(SPECIAL), special_tokens=True)
        vocabulary = tokenizer.get_vocab()
    tokenizer.pad_token = PAD
    first = vocabulary.get(PAD)
    if first is not None and first != text_tokens:
        raise ModelError(
            f"The tokenizer in {where} has {PAD} at {first}, and llm_vocab_size is {text_tokens}: its special tokens must "
            "follow the text. Take the tokenizer of this model's language model."
        )


class ShowOFormat(TokenFormat):
    """A dropped condition is an empty prompt, without a source."""

    family = "Show-o"
    begin_of_image, end_of_image = BEGIN_OF_IMAGE, END_OF_IMAGE
    image_token = LAST  # no row has it otherwise
    after_images = " \n"
    before_answer = " "

    def __init__(self, tokenizer: PreTrainedTokenizerFast, squares: CodeSquares, system_prompt: str, where: str):
        super().__init__(tokenizer, squares, where)
        ids = self.ids_of((*SPECIAL, END), where)
        if ids[:-1] != list(range(ids[0], ids[0] + len(SPECIAL))):
            raise ModelError(
                f"The tokenizer in {where} has {', '.join(SPECIAL)} at {ids[:-1]}; they must follow one another. Take the "
                "tokenizer of this model's language model."
            )
        self.pad, self.eos = ids[0], ids[-1]
        self.understands, self.generates = self.ids_of((UNDERSTAND, GENERATE), where)
        self.grid = CodeGrid(squares.side, squares.side, ids[0] + len(SPECIAL), squares.codebook)
        self.head = [self.eos, *self.encode(system_prompt)]
        self.opening = self.encode((" " if system_prompt else "") + USER)
        self.next_opening, self.closing = self.encode(USER), self.encode(ASSISTANT)

    @property
    def request_closing(self) -> list[int]:
        return [self.eos, self.begin]

    @property
    def after_prompt(self) -> int:
        """All codes, and the token that ends a picture."""
        return self.grid.count + 1

    def _opening(self, images: int) -> TokenSequence:
        sequence = TokenSequence()
        sequence.add([self.understands] if images else [])
        for _ in range(images):
            self._picture(sequence)
        sequence.add([*self.head, *self.opening])
        return sequence

    def _request_opening(self, source: bool) -> TokenSequence:
        sequence = TokenSequence()
        sequence.add([self.generates, self.eos])
        return sequence

    def _request_closing(self, source: bool) -> TokenSequence:
        sequence = TokenSequence()
        sequence.add([self.eos])
        if source:
            self._picture(sequence)
        sequence.add([self.begin])
        return sequence

    def _asked(self, question: str, follows_images: bool) -> PlainTokens:
        return self.plain.encode((self.after_images if follows_images else " ") + question)
