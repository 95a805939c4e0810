"""Which turns of a conversation fit into a row, and how much of their questions.

Lengths are in tokens. `questions[k]` is that of the question of turn k, `around[k]` that of the rest of the turn: its answer
and the format's own tokens, which are never cut. The first turn must fit with one token of its question.
"""

from __future__ import annotations

from collections.abc import Sequence

LEAST_QUESTION = 16
"""An independent turn is dropped where fewer tokens would be left of a question."""


def kept_in_order(questions: Sequence[int], around: Sequence[int], room: int) -> dict[int, int]:
    """Turn -> kept tokens of its question, for turns that read what was said before them.

    The first question is cut when it does not fit; the conversation ends before the first later turn that does not.
    """
    kept = {0: min(questions[0], room - around[0])}
    used = around[0] + kept[0]
    for turn in range(1, len(questions)):
        used += around[turn] + questions[turn]
        if used > room:
            break
        kept[turn] = questions[turn]
    return kept


def kept_apart(questions: Sequence[int], around: Sequence[int], room: int) -> dict[int, int]:
    """Turn -> kept tokens of its question, for independent turns.

    The longest questions are cut to one length. A turn that does not fit with a cut question is dropped, not
    those after it.
    """
    least = [min(length, LEAST_QUESTION) for length in questions]
    used = around[0] + min(least[0], room - around[0])
    kept = [0]
    for turn in range(1, len(questions)):
        if used + around[turn] + least[turn] <= room:
            used += around[turn] + least[turn]
            kept.append(turn)
    longest = _common_length([questions[turn] for turn in kept], room - sum(around[turn] for turn in kept))
    return {turn: min(questions[turn], longest) for turn in kept}


def _common_length(lengths: Sequence[int], room: int) -> int:
    """The largest length to which all may be cut so that their sum is at most `room`."""
    ascending = sorted(lengths)
    for number, length in enumerate(ascending):
        share = room // (len(ascending) - number)
        if length > share:
            return share
        room -= length
    return ascending[-1]
