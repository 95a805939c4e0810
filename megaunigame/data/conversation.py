"""The conversation of a sample, in the LLaVA form: speakers alternate, the image is marked in the text."""

from __future__ import annotations

from megaunigame.data.decode import Sample
from megaunigame.errors import DataError

IMAGE_MARKER = "<image>"
ASKING, ANSWERING = ("human", "user"), ("gpt", "assistant")


def question_answers(sample: Sample) -> list[tuple[str, str]]:
    """(question, answer) pairs of a sample, without image markers.

    Raises DataError when the sample has no conversation, or its speakers do not alternate.
    """
    talk = sample.meta.get("conversations")
    if not isinstance(talk, list) or not talk:
        raise DataError(f"Sample {sample.key} has no `conversations`; questions and answers come from there.")
    pairs = list(zip(talk[::2], talk[1::2], strict=False))
    if not all(isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in talk):
        raise DataError(f"Sample {sample.key}: every turn of `conversations` must be an object with a text in `value`.")
    if len(talk) % 2 or any(q.get("from") not in ASKING or a.get("from") not in ANSWERING for q, a in pairs):
        raise DataError(f"Sample {sample.key}: `conversations` must be pairs of human and gpt, human first.")
    return [(q["value"].replace(IMAGE_MARKER, "").strip(), a["value"].strip()) for q, a in pairs]


def caption_of(sample: Sample) -> str | None:
    """The caption of a sample; None: it has none, or an empty one. Raises DataError when it is not a text."""
    caption = sample.meta.get("caption")
    if not isinstance(caption, str | None):
        raise DataError(f"Sample {sample.key}: `caption` must be a text; got {caption!r}.")
    return caption or None
