"""The format of BAGEL: texts between `<|im_start|>` and `<|im_end|>`, pictures between `<|vision_start|>` and `<|vision_end|>`.

There are no roles and no line breaks. A conversation, a request for a picture, and one with a source picture::

    <|vision_start|>(visual tokens)<|vision_end|><|im_start|>question<|im_end|><|im_start|>answer<|im_end|>
    <|im_start|>caption<|im_end|><|vision_start|><|vision_end|>
    <|vision_start|><|vision_end|><|vision_start|>(visual tokens)<|vision_end|><|im_start|>instruction<|im_end|>
        <|vision_start|><|vision_end|>

Latent tokens are not in a sequence: they belong between a begin and an end token that are next to each other (`spans`). A
source picture is there twice, as latent tokens and as the vision tower sees it. A request with a context has any number of
source pictures, and texts between them; a picture that a row lost as a condition is one `<|image_pad|>` for each reading that
it lost, which counts as a position and is read by nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from megaunigame.errors import ConfigError, DataError
from megaunigame.models.text.conversation import SPARE, ConversationFormat
from megaunigame.models.text.sequences import TokenSequence
from megaunigame.step.rows import ShownPicture

TEXT_START, TEXT_END = "<|im_start|>", "<|im_end|>"
BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"
PAD = "<|endoftext|>"


class BagelFormat(ConversationFormat):
    """A request without its condition has no text, but keeps its source picture."""

    family = "BAGEL"
    begin_of_image, end_of_image, image_token = BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE
    after_images = ""
    keeps_source = True

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, visual_tokens: int, latent_tokens: int, system_prompt: str, where: str
    ):
        """`latent_tokens`: of one picture."""
        super().__init__(tokenizer, visual_tokens, where)
        self.latent_tokens = latent_tokens
        self.bos, self.eos = self.ids_of((TEXT_START, TEXT_END), where)
        self.pad = self.eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.head = [self.bos, *self.encode(system_prompt), self.eos] if system_prompt else []
        self.opening, self.next_opening = [], [self.bos]
        self.closing = [self.eos, self.bos]

    @property
    def request_closing(self) -> list[int]:
        return [self.eos, self.begin, self.end]

    def request(self, prompt: str, source: bool) -> str:
        return prompt.strip()

    def unconditional(self, sequence: TokenSequence) -> TokenSequence:
        """Without the last text; texts before it and the source picture stay."""
        start = len(sequence) - 1 - sequence.tokens[::-1].index(self.bos)
        kept = TokenSequence()
        for tokens, image in ((slice(0, start), True), (slice(len(sequence) - 2, None), False)):
            for token, is_image in zip(sequence.tokens[tokens], sequence.image[tokens], strict=True):
                kept.add([token], image=image and is_image)
        return kept

    def generate(self, prompt: str, source: bool, limit: int) -> TokenSequence:
        """As in the base class; the latent tokens of a source take of `limit`, too."""
        return super().generate(prompt, source, limit - self.latent_tokens * source)

    def shortest_request(self, source: bool) -> int:
        """Tokens that truncation cannot remove, with those of a source, and one token of text."""
        return super().shortest_request(source) + self.latent_tokens * source

    def interleaved(self, context: Sequence[ShownPicture | str], prompt: str | None, limit: int) -> TokenSequence:
        """A request with several source pictures and texts before its prompt; the prompt is cut at its end to fit `limit`
        tokens, of which latent tokens take their part, too. `prompt` None: dropped.

        Raises ConfigError when `limit` cannot hold the pictures, DataError when it cannot hold the texts before the prompt.
        """
        sequence = TokenSequence()
        sequence.add(self.head)
        pictures = [part for part in context if isinstance(part, ShownPicture)]
        least = len(self.head) + self.context_length(pictures) + len(self.request_closing) + 2
        if least > limit:
            raise ConfigError(
                f"model.max_length leaves {limit} tokens to a request, and {len(pictures)} source pictures need {least}. Raise "
                f"model.max_length by {least - limit} or more, or show fewer pictures in a row."
            )
        for part in context:
            if isinstance(part, ShownPicture):
                self._shown(part, sequence)
            else:
                text = self.plain.encode(part.strip())
                sequence.add([self.bos, *text.tokens, self.eos])
                sequence.escaped += text.escaped
        latents = self.latent_tokens * sum(part.latents for part in pictures)
        room = limit - latents - len(sequence) - len(self.request_closing) - 1
        if room < 1:
            raise DataError(
                f"the texts before its prompt do not fit next to {len(pictures)} source pictures: {1 - room} tokens too many. "
                "Raise model.max_length, show fewer pictures in a row, or leave out samples with such texts."
            )
        if prompt is None:
            sequence.add([self.begin, self.end])
        else:
            asked = self.plain.encode(prompt.strip())
            sequence.add([self.bos, *asked.tokens[:room], *self.request_closing])
            sequence.escaped += asked.escaped
            sequence.cut = len(asked.tokens) > room
        whole = prompt is not None and all(part.latents and part.seen for part in pictures)
        sequence.intact = whole and not sequence.cut
        return sequence

    def context_length(self, pictures: Sequence[ShownPicture]) -> int:
        """Tokens of source pictures, latent ones included."""
        of_latents = [2 + self.latent_tokens if part.latents else 1 for part in pictures]
        return sum(of_latents) + sum(2 + self.visual_tokens if part.seen else 1 for part in pictures)

    def surely_fits(self, context: Sequence[ShownPicture | str], limit: int) -> bool:
        """Whether `interleaved` need not be tried: a token stands for a byte at least."""
        texts = [part for part in context if isinstance(part, str)]
        fixed = len(self.head) + self.context_length([p for p in context if isinstance(p, ShownPicture)])
        return fixed + sum(len(text.encode()) + SPARE for text in texts) + len(self.request_closing) + SPARE <= limit

    def _shown(self, part: ShownPicture, sequence: TokenSequence) -> None:
        """Add the tokens of a source picture in a context."""
        sequence.add([self.begin, self.end] if part.latents else [self.image])
        if part.seen:
            self._picture(sequence)
        else:
            sequence.add([self.image])

    def _opening(self, images: int) -> TokenSequence:
        sequence = super()._opening(images)
        sequence.add([self.bos])
        return sequence

    def _request_opening(self, source: bool) -> TokenSequence:
        sequence = TokenSequence()
        sequence.add(self.head)
        if source:
            sequence.add([self.begin, self.end])
            self._picture(sequence)
        sequence.add([self.bos])
        return sequence
