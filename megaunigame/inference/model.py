"""A model in use: questions, pictures of texts, pictures of pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megaunigame.errors import CapacityError, ConfigError, DataError, ModelError
from megaunigame.inference.pictures import Picture, as_pixels
from megaunigame.inference.redraws import chosen
from megaunigame.inference.seeds import generator_of
from megaunigame.inference.settings import BATCH, REDRAW_TEMPERATURE, AnswerSettings, DrawSettings
from megaunigame.inference.source import Source
from megaunigame.models.base import UnifiedModel
from megaunigame.models.causal.decoding import NOT_FINITE
from megaunigame.pixels import as_image, to_bytes
from megaunigame.settings import fill
from megaunigame.step.requests import CROP

Turn = tuple[str, str]
Pictures = Picture | Sequence[Picture] | None
"""Of one question: none, one, or several."""


@dataclass(frozen=True)
class Question:
    """One item of a batch of questions."""

    text: str
    pictures: Sequence[Tensor] = ()
    """uint8 (3, h, w) each."""
    earlier: Sequence[Turn] = ()
    """(question, answer) of the same conversation; the pictures come before all of them."""
    item: str = "0"
    """What its random numbers depend on, next to the seed."""


@dataclass(frozen=True)
class Answer:
    text: str
    cut: bool
    """It had not ended after `max_tokens`."""


@dataclass(frozen=True)
class PictureRequest:
    """One item of a batch of pictures."""

    prompt: str
    source: Tensor | None = None
    """uint8 (3, h, w); all requests of a batch have one, or none has."""
    item: str = "0"
    sample: int = 0
    """What its random numbers depend on, next to the seed."""


class Model:
    """A loaded model. `megaunigame.load` makes one."""

    def __init__(self, source: Source, network: UnifiedModel, device: torch.device, guidance: float):
        self.source, self.network, self.device = source, network, device
        self.guidance = guidance
        """Default of `draw`."""

    def __repr__(self) -> str:
        return f"<megaunigame {self.source.family.name}: {self.source.what}, on {self.device}>"

    def ask(
        self,
        pictures: Any,
        text: str | Sequence[str],
        *,
        history: Sequence[Any] = (),
        max_tokens: int = AnswerSettings.max_tokens,
        temperature: float = AnswerSettings.temperature,
        seed: int = AnswerSettings.seed,
        batch: int = BATCH,
    ) -> Any:
        """The answer to a question about a picture, about several (a list), or about none (None).

        A list of texts is a list of questions, `batch` of which run together, and gives a list of answers; `pictures` is then
        one picture for all, None, or a list with what each question is about. `history`: earlier turns of the conversation,
        (question, answer) each; for a list of texts, a list of such lists. An answer ends with the model's end token, or after
        `max_tokens`.

        Raises DataError for a picture that cannot be used and for a text that does not fit, ConfigError for anything else that
        is not legal.
        """
        settings = fill(AnswerSettings, {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}, "")
        if isinstance(text, str):
            return self.answer([Question(text, _pixels(pictures), _turns(history))], settings)[0].text
        texts = _texts(text)
        shown = list(pictures) if isinstance(pictures, list | tuple) else [pictures] * len(texts)
        talks = list(history) or [()] * len(texts)
        for what, given in (("pictures", shown), ("history", talks)):
            if len(given) != len(texts):
                raise ConfigError(f"ask: {len(texts)} texts, and {what} has {len(given)} entries. Give one for each text.")
        questions = [
            Question(asked, _pixels(about), _turns(talk), item=str(number))
            for number, (asked, about, talk) in enumerate(zip(texts, shown, talks, strict=True))
        ]
        return [answer.text for part in _batches(questions, batch) for answer in self.answer(part, settings)]

    def draw(
        self,
        text: str | Sequence[str],
        *,
        count: int | None = None,
        guidance: float | None = None,
        temperature: float = DrawSettings.temperature,
        seed: int = DrawSettings.seed,
        batch: int = BATCH,
    ) -> Any:
        """A picture of a text, or a list of `count` different ones. A list of texts gives a list of either.

        `guidance` None: what the folder names (generation_config.json), else the family, else 5. A picture depends on seed,
        text, place in the list of texts, and number up to `count`; the command `draw` makes the same one of the same list.

        Raises DataError for a text that does not fit, ConfigError for anything else that is not legal.
        """
        scale = self.guidance if guidance is None else guidance
        settings = fill(DrawSettings, {"guidance": scale, "temperature": temperature, "seed": seed}, "")
        copies = 1 if count is None else _positive("count", count)
        texts = [text] if isinstance(text, str) else _texts(text)
        requests = [PictureRequest(t, item=str(n), sample=k) for n, t in enumerate(texts) for k in range(copies)]
        drawn = [as_image(picture) for part in _batches(requests, batch) for picture in self.picture(part, settings)]
        each: list[Any] = drawn if count is None else [drawn[n : n + copies] for n in range(0, len(drawn), copies)]
        return each[0] if isinstance(text, str) else each

    def redraw(
        self,
        picture: Any,
        to: str = "pixel",
        *,
        prompt: str | None = None,
        geometry: str | None = None,
        guidance: float = DrawSettings.guidance,
        temperature: float = REDRAW_TEMPERATURE,
        seed: int = DrawSettings.seed,
        batch: int = BATCH,
    ) -> Any:
        """What the model draws of a picture: "pixel" (the picture again), "depth", "segmentation", "edges". A list of pictures
        gives a list. Squares, as the model draws them.

        A model can draw what it was trained to. `prompt`, `geometry` None: as it was trained, as far as its run or its folder
        says (`redraw_prompts.json`); else a sentence of the UniMRG paper, and "squash".

        Raises DataError for a picture that cannot be used, ConfigError for a representation that does not exist.
        """
        settings = fill(DrawSettings, {"guidance": guidance, "temperature": temperature, "seed": seed}, "")
        how = chosen(to, self.source.redraws, prompt, geometry)
        many = isinstance(picture, list | tuple)
        pictures = picture if many else [picture]
        requests = [PictureRequest(how.prompt, as_pixels(p), item=str(n)) for n, p in enumerate(pictures)]
        parts = _batches(requests, batch)
        drawn = [as_image(pixels) for part in parts for pixels in self.picture(part, settings, how.geometry)]
        return drawn if many else drawn[0]

    # One batch each

    @torch.no_grad()
    def answer(self, questions: Sequence[Question], settings: AnswerSettings) -> list[Answer]:
        """Raises DataError when one of them does not fit into a row, CapacityError when they do not fit into memory."""
        processor = self.network.processor
        inputs = processor.prompt_inputs(
            [q.pictures for q in questions],
            [q.text for q in questions],
            [q.earlier for q in questions],
            room=settings.max_tokens,
        )
        with fitting(len(questions)):
            rows = self.network.answer(
                inputs.to(self.device),
                max_new_tokens=settings.max_tokens,
                temperature=settings.temperature,
                generator=[generator_of(settings.seed, q.item) for q in questions],
                lockstep=False,
            ).tolist()
        end = processor.eos_id
        said = [row[: row.index(end)] if end in row else row for row in rows]
        return [Answer(processor.text(tokens), end not in row) for tokens, row in zip(said, rows, strict=True)]

    @torch.no_grad()
    def picture(self, requests: Sequence[PictureRequest], settings: DrawSettings, geometry: str = CROP) -> list[Tensor]:
        """uint8 (3, h, w) for each request. Raises DataError when a prompt does not fit into a row, CapacityError when the
        requests do not fit into memory."""
        processor = self.network.processor
        sources = None if requests[0].source is None else [request.source for request in requests]
        inputs = processor.generate_prompts([request.prompt for request in requests], sources, geometry)
        if inputs.cut is not None and bool(inputs.cut.any()):
            long = requests[int(inputs.cut.nonzero()[0])].prompt
            raise DataError(
                f"The text is too long for a row of {processor.max_length} tokens, of which the picture takes "
                f"{processor.after_prompt}: {long[:60]!r}... Shorten it, or load the model with a larger max_length."
            )
        with fitting(len(requests)):
            pixels = self.network.sample(
                inputs.to(self.device),
                guidance=settings.guidance,
                temperature=settings.temperature,
                generator=[generator_of(settings.seed, request.item, request.sample) for request in requests],
                lockstep=False,
            )
            if not bool(pixels.isfinite().all()):
                raise ModelError(NOT_FINITE)
            return list(to_bytes(pixels))


@contextmanager
def fitting(rows: int) -> Iterator[None]:
    """Inside, a GPU without memory for so many rows raises CapacityError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        if rows > 1:
            advice = f"Type --batch {rows // 2} (in Python batch={rows // 2})."
        else:
            advice = (
                "Type a smaller --max-length (in Python max_length), so that longer rows have an error and others run; "
                "--dtype bfloat16 if it is float32; or take a GPU with more memory."
            )
        raise CapacityError(f"{rows} row(s) do not fit into the memory of the GPU, next to the model. {advice}") from error


def _batches(items: Sequence[Any], batch: int) -> list[Sequence[Any]]:
    size = _positive("batch", batch)
    return [items[start : start + size] for start in range(0, len(items), size)]


def _positive(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} must be a whole number, 1 or more; got {value!r}.")
    return value


def _texts(texts: Sequence[str]) -> list[str]:
    for text in texts if isinstance(texts, list | tuple) else [texts]:
        if not isinstance(text, str):
            raise ConfigError(f"A text is a {type(text).__name__}: {text!r}. Give a text, or a list of texts.")
    return list(texts)


def _pixels(pictures: Any) -> list[Tensor]:
    if pictures is None:
        return []
    return [as_pixels(picture) for picture in (pictures if isinstance(pictures, list | tuple) else [pictures])]


def _turns(history: Sequence[Any]) -> list[Turn]:
    for turn in history:
        if not (isinstance(turn, tuple | list) and len(turn) == 2 and all(isinstance(text, str) for text in turn)):
            raise ConfigError(f"An earlier turn is {turn!r}; it must be (question, answer), two texts.")
    return [(question, answer) for question, answer in history]
