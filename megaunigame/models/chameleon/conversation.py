"""The conversation format of Chameleon.

One turn reads, with the images only in the first::

    <s>(picture)question<reserved08706>answer</s>

A picture is its codes, line by line and without line ends: `<racm3:break>(H * W codes)<eoss>`. The separator ends a prompt. A
request for a picture is a prompt whose answer is one: `<s>(picture of the source)prompt<reserved08706><racm3:break>`.
"""

from __future__ import annotations

from functools import cached_property

from transformers import PreTrainedTokenizerFast

from megaunigame.models.causal.code_grid import CodeGrid
from megaunigame.models.causal.token_format import CodeSquares, TokenFormat
from megaunigame.models.chameleon.code_names import code_token, codes_by_place, ids_of_codes
from megaunigame.models.chameleon.text_tokenizer import BOS, EOS, PAD
from megaunigame.models.text.plain_text import PlainText
from megaunigame.models.text.sequences import TokenSequence

BEGIN_OF_IMAGE, END_OF_IMAGE, SEPARATOR = "<racm3:break>", "<eoss>", "<reserved08706>"


def after_system(prompt: str) -> str:
    """A system prompt as it stands before the first turn; the released models have none."""
    return f"{prompt}\n" if prompt else ""


class ChameleonFormat(TokenFormat):
    """A dropped condition leaves the first token and the begin of the image, as in the official guidance."""

    family = "Chameleon"
    begin_of_image, end_of_image, image_token = BEGIN_OF_IMAGE, END_OF_IMAGE, code_token(0)
    after_images = ""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, squares: CodeSquares, system_prompt: str, where: str):
        super().__init__(tokenizer, squares, where)
        self.bos, self.eos, self.pad, separator = self.ids_of((BOS, EOS, PAD, SEPARATOR), where)
        ids = ids_of_codes(tokenizer.get_vocab(), squares.codebook, where)
        self.codes = codes_by_place(ids)
        """Place among the tokens of codes -> code."""
        self.grid = CodeGrid(squares.side, squares.side, min(ids), squares.codebook)
        self.head = [self.bos, *self.encode(after_system(system_prompt))]
        self.opening, self.next_opening = [], []
        self.closing = [separator]

    @cached_property
    def plain(self) -> PlainText:
        """Encodes the texts of rows; the names of codes are control tokens, whether or not the tokenizer marks them."""
        codes = range(self.grid.ids.start, self.grid.ids.stop)
        return PlainText(self.tokenizer, (self.begin, self.end, self.eos, self.pad, *self.closing, *codes))

    def unconditional(self, sequence: TokenSequence) -> TokenSequence:
        """Always the same request, without the text and the source of `sequence`."""
        empty = TokenSequence()
        empty.add([self.bos, self.begin])
        return empty
