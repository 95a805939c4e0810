"""Conversations: one reading of all forms in which they exist, the same when data is packed, checked, counted and trained on.

- Turns are `{from, value}` (LLaVA), `{role, content}` (chat messages; the content a text or a list of texts and images) or
  `{user, assistant}`. Speakers are those of `SPEAKERS`, in any case.
- Turns of one speaker in a row are one turn. An answer before the first question and a question after the last answer are left
  out; so are pairs without an answer, and pairs of a text-only sample without a question.
- A system turn at the beginning is the context: it stands before the first question (before each, where questions do not read
  each other). A later one is part of the question next to it.
- Pictures come before the first question, in their order. `<image>` in a question is the place of one: as many as there are
  pictures are taken out, those alone on a line first, then those at the beginning or the end of a question, then
  others; never one that `</image>` closes within a line. Another one within a line, and any in an answer or a system turn, is
  text. One at the beginning of a question or alone on a line is the place of a picture that is not there, and refused,
  except in XML (`</image>`).
"""

from __future__ import annotations

import operator
import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from megaunigame.data.decode import Sample
from megaunigame.errors import DataError
from megaunigame.storage.foreign_text import quoted

IMAGE_MARKER = "<image>"
TALK_KEYS = ("conversations", "messages", "conversation")
"""Keys of a sample's JSON that may hold the conversation; the first that is not empty is read."""
SYSTEM, HUMAN, GPT = "system", "human", "gpt"
SPEAKERS = {
    **dict.fromkeys(("human", "user"), HUMAN),
    **dict.fromkeys(("gpt", "assistant", "bot", "model", "chatgpt"), GPT),
    SYSTEM: SYSTEM,
}

OPENING_ANSWER = "answer before the first question: left out"
LAST_QUESTION = "question after the last answer: left out"
NO_ANSWER = "question with an empty answer: left out"
NO_QUESTION = "answer to an empty question, without a picture: left out"
MOST_TURNS, LONGEST_TEXT = 10_000, 1_000_000
"""Turns of a conversation, and characters of one turn or caption: a tokenizer takes a second for a million."""
_CLOSED = re.compile(rf"(?:(?!{IMAGE_MARKER}).)*?</image>", re.DOTALL)
"""What follows a marker that is a tag of XML."""
NULS = "text with null characters: they are left out"


@dataclass(frozen=True)
class Conversation:
    """Questions and answers, without markers of pictures."""

    context: str
    """The text of the system turn; "" without one."""
    pairs: tuple[tuple[str, str], ...]
    """(question, answer), at least one."""
    left_out: tuple[str, ...] = ()
    """What the reading left out, one entry each."""

    def asked(self, chosen: Sequence[int] | None = None, *, apart: bool = False) -> list[tuple[str, str]]:
        """The pairs, or those `chosen`, with the context before the first question; `apart`: before every question."""
        pairs = [self.pairs[i] for i in (range(len(self.pairs)) if chosen is None else chosen)]
        if not self.context:
            return pairs
        told = len(pairs) if apart else 1
        return [(f"{self.context}\n{q}".strip(), a) for q, a in pairs[:told]] + pairs[told:]

    def turns(self, pictures: int) -> list[dict[str, str]]:
        """As shards have it: `{from, value}` of system, human and gpt; the places of all pictures begin the first question."""
        marks = f"{IMAGE_MARKER}\n" * pictures
        spoken = [{"from": SYSTEM, "value": self.context}] if self.context else []
        for number, (question, answer) in enumerate(self.pairs):
            spoken.append({"from": HUMAN, "value": question if number else marks + question})
            spoken.append({"from": GPT, "value": answer})
        return spoken


def read_conversation(talk: Any, pictures: int) -> Conversation:
    """The conversation in any of the forms above, about this many pictures.

    Raises DataError, worded as what the sample has, when it is in none of them or no question has an answer.
    """
    spoken = _all_spoken(talk)
    context, turns, left_out = _alternating(spoken)
    if any("\0" in text for _, text in spoken):
        left_out.append(NULS)
    questions = _without_places([text for _, text in turns[::2]], pictures)
    pairs = []
    for question, answer in zip(questions, (text.strip() for _, text in turns[1::2]), strict=True):
        if not answer:
            left_out.append(NO_ANSWER)
        elif not question and not pictures:
            left_out.append(NO_QUESTION)
        else:
            pairs.append((question, answer))
    if not pairs:
        speakers = [speaker for speaker, _ in spoken]
        why = f"turns from {speakers}" if not turns else "only empty answers or questions"
        raise DataError(f"has {why[:200]}; a question of human (user) and the answer of gpt (assistant) are wanted")
    return Conversation(context, tuple(pairs), tuple(left_out))


def places_in(talk: Any) -> int:
    """How many pictures the questions have places for. Raises DataError for a conversation in none of the forms above."""
    _, turns, _ = _alternating(_all_spoken(talk))
    return sum(len(_places(text)) for _, text in turns[::2])


def conversation_of(sample: Sample) -> Conversation:
    """The conversation of a sample. Raises DataError when it has none, or one that cannot be read."""
    talk = next((sample.meta[key] for key in TALK_KEYS if sample.meta.get(key)), None)
    if talk is None:
        raise DataError(f"Sample {sample.key} has no `conversations`; questions and answers come from there.")
    try:
        return read_conversation(talk, sample.image_count)
    except DataError as error:
        raise DataError(f"Sample {sample.key} {error}.") from error


def question_answers(sample: Sample, *, apart: bool = False) -> list[tuple[str, str]]:
    """(question, answer) pairs of a sample, without image markers and with the context (`Conversation.asked`).

    Raises DataError when the sample has no conversation, or one that cannot be read.
    """
    return conversation_of(sample).asked(apart=apart)


def caption_of(sample: Sample) -> str | None:
    """The caption of a sample, without null characters; None: it has none, or an empty one.

    Raises DataError when it is not a text, or too long.
    """
    caption = sample.meta.get("caption")
    if not isinstance(caption, str | None):
        raise DataError(f"Sample {sample.key}: `caption` must be a text; got {quoted(caption)}.")
    written = (caption or "").replace("\0", "")
    if len(written) > LONGEST_TEXT:
        raise DataError(f"Sample {sample.key}: `caption` has {len(written):,} characters, more than {LONGEST_TEXT:,}.")
    return written if written.strip() else None


def _all_spoken(talk: Any) -> list[tuple[str, str]]:
    """(speaker, text) of every turn. Raises DataError when there is none, one in another form, or too much."""
    if not isinstance(talk, list) or not talk:
        raise DataError("has no conversations")
    if len(talk) > MOST_TURNS:
        raise DataError(f"has {len(talk):,} turns, more than the {MOST_TURNS:,} that are read")
    spoken = [said for turn in talk for said in _spoken(turn)]
    longest = max(len(text) for _, text in spoken)
    if longest > LONGEST_TEXT:
        raise DataError(f"has a turn of {longest:,} characters, more than the {LONGEST_TEXT:,} that are read")
    return spoken


def _spoken(turn: Any) -> list[tuple[str, str]]:
    """(speaker, text) of one turn: two for `{user, assistant}`."""
    if not isinstance(turn, dict):
        raise DataError(f"has a turn that is not an object but a {type(turn).__name__}: {quoted(turn)}")
    if isinstance(turn.get("user"), str) and isinstance(turn.get("assistant"), str):
        return [(HUMAN, turn["user"]), (GPT, turn["assistant"])]
    speaker = next((turn[name] for name in ("from", "role") if turn.get(name) is not None), None)
    content = next((turn[name] for name in ("value", "content") if turn.get(name) is not None), None)
    if not isinstance(speaker, str) or content is None:
        raise DataError(f"has a turn that is not {{from, value}} or {{role, content}}: {quoted(turn)}")
    if speaker.lower() not in SPEAKERS:
        raise DataError(f"has a turn from {quoted(speaker)}; legal are {', '.join(SPEAKERS)}")
    return [(SPEAKERS[speaker.lower()], _text(content))]


def _text(content: Any) -> str:
    """The text of a turn; the images of a content list become markers."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise DataError(f"has a turn whose text is a {type(content).__name__}: {quoted(content)}")
    return "".join(_part(part) for part in content)


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = str(part.get("type") or "") if isinstance(part, dict) else type(part).__name__
    if kind.startswith("image"):
        return f"\n{IMAGE_MARKER}\n"
    if isinstance(part, dict) and kind in ("text", "") and isinstance(part.get("text"), str):
        return str(part["text"])
    raise DataError(f"has a part of a turn that is neither a text nor an image: {quoted(part)}")


def _alternating(spoken: Sequence[tuple[str, str]]) -> tuple[str, list[tuple[str, str]], list[str]]:
    """The context; human and gpt in turn, human first, gpt last; and what was left out for that."""
    context: list[str] = []
    turns: list[tuple[str, list[str]]] = []
    left_out: list[str] = []
    for speaker, said in spoken:
        text = said.replace("\0", "")
        if speaker == SYSTEM and not turns:
            context.append(text.strip())
            continue
        speaker = HUMAN if speaker == SYSTEM else speaker
        if not turns and speaker == GPT:
            left_out.append(OPENING_ANSWER)
        elif turns and turns[-1][0] == speaker:
            turns[-1][1].append(text)
        else:
            turns.append((speaker, [text]))
    if len(turns) % 2:
        turns.pop()
        left_out.append(LAST_QUESTION)
    return "\n".join(filter(None, context)), [(speaker, "\n".join(texts)) for speaker, texts in turns], left_out


def _without_places(questions: list[str], pictures: int) -> list[str]:
    """The questions without the places of `pictures` pictures. Raises DataError for places of more."""
    ranked = sorted((rank, number, at) for number, text in enumerate(questions) for at, rank in _places(text).items())
    taken: dict[int, list[int]] = defaultdict(list)
    for _, number, at in ranked[:pictures]:
        taken[number].append(at)
    cleaned = []
    for number, question in enumerate(questions):
        rest = _without(question, sorted(taken[number])).strip()
        lines = [line.strip() for line in rest.split("\n")]
        if (IMAGE_MARKER in lines or rest.startswith(IMAGE_MARKER)) and "</image>" not in rest:
            marked = sum(q.count(IMAGE_MARKER) for q in questions)
            raise DataError(
                f"has {IMAGE_MARKER} {marked} times in its questions and {pictures or 'no'} image{'s' * (pictures > 1)}"
            )
        cleaned.append(rest)
    return cleaned


def _places(question: str) -> dict[int, int]:
    """Where each marker that may be the place of a picture begins -> its rank: the least are taken first."""
    spans = [marker.span() for marker in re.finditer(IMAGE_MARKER, question)]
    # Blank between the markers; from both ends, so that the time is that of one reading however many there are.
    edges = [(0, 0), *spans, (len(question), len(question))]
    blank = [not question[end:start].strip() for (_, end), (start, _) in pairwise(edges)]
    first = list(accumulate(blank[:-1], operator.and_))
    last = list(accumulate(reversed(blank[1:]), operator.and_))[::-1]
    alone = [only for line in question.split("\n") for only in [_only_markers(line)] * line.count(IMAGE_MARKER)]
    found: dict[int, int] = {}
    for (at, end), is_first, is_last, is_alone in zip(spans, first, last, alone, strict=True):
        closed = _CLOSED.match(question, end) is not None
        if is_alone and (is_first or not closed):
            found[at] = 0
        elif not closed:
            found[at] = 1 if is_first or is_last else 3
        elif is_alone:
            found[at] = 2
    return found


def _only_markers(text: str) -> bool:
    return not text.replace(IMAGE_MARKER, "").strip()


def _without(question: str, taken: Sequence[int]) -> str:
    """The question without the markers that begin there (ascending), and without the lines that nothing else is on."""
    lines, start = [], 0
    for line in question.split("\n"):
        here = [at - start for at in taken[bisect_left(taken, start) : bisect_right(taken, start + len(line))]]
        start += len(line) + 1
        rest = line
        for at in sorted(here, reverse=True):
            rest = rest[:at] + rest[at + len(IMAGE_MARKER) :]
        if rest.strip() or not here:
            lines.append(rest)
    return "\n".join(lines)
